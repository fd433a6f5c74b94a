// AES-256-GCM-SIV as RFC 8452 has it. Node's own OpenSSL may lack it, so only the AES block is taken from there.

import { createCipheriv, timingSafeEqual } from "node:crypto";

const BLOCK = 16;

function encryptBlocks(key, blocks) {
  const cipher = createCipheriv("aes-256-ecb", key, null).setAutoPadding(false);
  return Buffer.concat([cipher.update(blocks), cipher.final()]);
}

// Section 3: the field is GF(2^128) modulo x^128 + x^127 + x^126 + x^121 + 1; dot(a, b) = a * b * x^-128.
// An element is four 32-bit words, the lowest bits first.
function dot(a, b) {
  let [r0, r1, r2, r3] = [0, 0, 0, 0];
  for (let bit = 0; bit < 128; bit++) {
    if ((a[bit >> 5] >>> (bit & 31)) & 1) {
      r0 ^= b[0];
      r1 ^= b[1];
      r2 ^= b[2];
      r3 ^= b[3];
    }
    const odd = r0 & 1; // times x^-1: where it does not divide, the modulus is added first
    r0 = (r0 >>> 1) | (r1 << 31);
    r1 = (r1 >>> 1) | (r2 << 31);
    r2 = (r2 >>> 1) | (r3 << 31);
    r3 = r3 >>> 1;
    if (odd) r3 ^= 0xe1000000; // x^127 + x^126 + x^125 + x^120
  }
  return [r0, r1, r2, r3];
}

export function polyval(key, input) {
  const h = [0, 4, 8, 12].map((at) => key.readUInt32LE(at));
  let sum = [0, 0, 0, 0];
  for (let at = 0; at < input.length; at += BLOCK) {
    sum = dot(sum.map((word, n) => word ^ input.readUInt32LE(at + 4 * n)), h);
  }
  const out = Buffer.alloc(BLOCK);
  sum.forEach((word, n) => out.writeUInt32LE(word >>> 0, 4 * n));
  return out;
}

function padded(bytes) {
  return Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)]);
}

// Section 4: the two keys of a nonce.
function keysOf(key, nonce) {
  const blocks = Buffer.alloc(6 * BLOCK);
  for (let n = 0; n < 6; n++) {
    blocks.writeUInt32LE(n, n * BLOCK);
    nonce.copy(blocks, n * BLOCK + 4);
  }
  const made = encryptBlocks(key, blocks);
  const halves = [0, 1, 2, 3, 4, 5].map((n) => made.subarray(n * BLOCK, n * BLOCK + 8));
  return { authentication: Buffer.concat(halves.slice(0, 2)), encryption: Buffer.concat(halves.slice(2)) };
}

function tagOf(keys, nonce, plain, associated) {
  const lengths = Buffer.alloc(BLOCK);
  lengths.writeBigUInt64LE(BigInt(associated.length) * 8n, 0);
  lengths.writeBigUInt64LE(BigInt(plain.length) * 8n, 8);
  const sum = polyval(keys.authentication, Buffer.concat([padded(associated), padded(plain), lengths]));
  for (let n = 0; n < 12; n++) sum[n] ^= nonce[n];
  sum[15] &= 0x7f;
  return encryptBlocks(keys.encryption, sum);
}

function counted(key, tag, bytes) {
  const count = Math.ceil(bytes.length / BLOCK);
  const blocks = Buffer.alloc(count * BLOCK);
  const first = Buffer.from(tag);
  first[15] |= 0x80;
  const start = first.readUInt32LE(0);
  for (let n = 0; n < count; n++) {
    first.copy(blocks, n * BLOCK);
    blocks.writeUInt32LE((start + n) >>> 0, n * BLOCK);
  }
  const stream = count ? encryptBlocks(key, blocks) : Buffer.alloc(0);
  return Buffer.from(bytes.map((byte, n) => byte ^ stream[n]));
}

export function seal(key, nonce, plain, associated) {
  const keys = keysOf(key, nonce);
  const tag = tagOf(keys, nonce, plain, associated);
  return Buffer.concat([counted(keys.encryption, tag, plain), tag]);
}

// The plain text, or null if it was not sealed so.
export function open(key, nonce, sealed, associated) {
  if (sealed.length < BLOCK) return null;
  const keys = keysOf(key, nonce);
  const tag = sealed.subarray(sealed.length - BLOCK);
  const plain = counted(keys.encryption, tag, sealed.subarray(0, sealed.length - BLOCK));
  return timingSafeEqual(tagOf(keys, nonce, plain, associated), tag) ? plain : null;
}
