// BLAKE2b (RFC 7693) with a key and a length: Node has it only with 64 bytes and without a key.

const MASK = (1n << 64n) - 1n;
const IV = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];
const SIGMA = [
  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
  [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4], [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
  [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13], [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
  [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11], [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
  [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5], [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

const turned = (word, by) => ((word >> by) | (word << (64n - by))) & MASK;

function compress(h, block, count, isLast) {
  const m = Array.from({ length: 16 }, (_, n) => block.readBigUInt64LE(8 * n));
  const v = [...h, ...IV];
  v[12] ^= BigInt(count);
  if (isLast) v[14] ^= MASK;
  const mix = (a, b, c, d, x, y) => {
    v[a] = (v[a] + v[b] + x) & MASK;
    v[d] = turned(v[d] ^ v[a], 32n);
    v[c] = (v[c] + v[d]) & MASK;
    v[b] = turned(v[b] ^ v[c], 24n);
    v[a] = (v[a] + v[b] + y) & MASK;
    v[d] = turned(v[d] ^ v[a], 16n);
    v[c] = (v[c] + v[d]) & MASK;
    v[b] = turned(v[b] ^ v[c], 63n);
  };
  for (let round = 0; round < 12; round++) {
    const s = SIGMA[round % 10];
    for (let n = 0; n < 4; n++) mix(n, 4 + n, 8 + n, 12 + n, m[s[2 * n]], m[s[2 * n + 1]]);
    for (let n = 0; n < 4; n++) {
      mix(n, 4 + ((n + 1) % 4), 8 + ((n + 2) % 4), 12 + ((n + 3) % 4), m[s[8 + 2 * n]], m[s[9 + 2 * n]]);
    }
  }
  return h.map((word, n) => word ^ v[n] ^ v[n + 8]);
}

export function blake2b(data, { key = Buffer.alloc(0), length = 64 } = {}) {
  let h = [...IV];
  h[0] ^= 0x01010000n ^ (BigInt(key.length) << 8n) ^ BigInt(length);
  const first = key.length ? Buffer.concat([key, Buffer.alloc(128 - key.length)]) : Buffer.alloc(0);
  const input = Buffer.concat([first, data]);
  let at = 0;
  for (; at + 128 < input.length; at += 128) h = compress(h, input.subarray(at, at + 128), at + 128, false);
  const rest = input.subarray(at);
  h = compress(h, Buffer.concat([rest, Buffer.alloc(128 - rest.length)]), input.length, true);
  const out = Buffer.alloc(64);
  h.forEach((word, n) => out.writeBigUInt64LE(word, 8 * n));
  return out.subarray(0, length);
}
