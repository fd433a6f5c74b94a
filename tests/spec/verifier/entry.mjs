// docs/spec/entry.md and put-rule.md: E and P.

import { blake2b } from "./blake2b.mjs";

const epoch = (version) => version.slice(0, 8);
const claim = (version) => version.slice(0, 24);

export function covers(history, version) {
  const same = history.findLast((one) => epoch(one) === epoch(version));
  if (same !== undefined) return claim(same) === claim(version) && same >= version;
  return history.length === 16 && epoch(version) < epoch(history[0]);
}

export function written(history, version) {
  if (history.length && claim(history.at(-1)) === claim(version)) return [...history.slice(0, -1), version];
  return [...history, version].slice(-16);
}

export function parse(raw) {
  if (raw.length < 19 || raw.length > 1048576 || raw[0] !== 1) return null;
  const [flags, count] = [raw[1], raw[18]];
  const body = 19 + 16 * count;
  if (![0, 1, 3].includes(flags) || count > 16 || raw.length < body) return null;
  const history = Array.from({ length: count }, (_, n) => raw.toString("hex", 19 + 16 * n, 35 + 16 * n));
  const version = raw.toString("hex", 2, 18);
  return { flags, version, history, header: raw.subarray(0, body), payload: raw.subarray(body) };
}

export function openEntry(ring, farm, key, raw) {
  const entry = parse(raw);
  if (entry === null) return { refused: "shape" };
  const { plain, refused } = ring.open("entry", farm, entry.payload, Buffer.concat([key, entry.header]));
  if (refused) return { refused: "payload" };
  return { flags: entry.flags, version: entry.version, history: entry.history, body: plain.toString("hex") };
}

export function sealEntry(ring, farm, key, nonce, { flags, version, history, body }) {
  const header = Buffer.from("01" + Buffer.from([flags]).toString("hex") + version, "hex");
  const head = Buffer.concat([header, Buffer.from([history.length]), Buffer.from(history.join(""), "hex")]);
  return Buffer.concat([head, ring.seal("entry", farm, nonce, Buffer.from(body, "hex"), Buffer.concat([key, head]))]);
}

// stored: {flags, version} or null; seen: a version or null. Answers whether it is accepted, and whom P4 and P5 name.
export function judgePut(stored, seen, next) {
  const willed = (one) => one.flags === 1;
  const refused = { accepted: false, notified: null };
  if (stored === null) return { accepted: seen === null || willed(next), notified: null };
  if (stored.flags === next.flags && stored.version === next.version) return { accepted: true, notified: null };
  if (willed(stored)) return refused;
  const owner = stored.version.slice(8, 14);
  if (willed(next)) return { accepted: true, notified: owner };
  const oneClaim = !stored.flags && !next.flags && claim(stored.version) === claim(next.version);
  if (stored.version === seen) return { accepted: true, notified: oneClaim ? null : owner };
  return oneClaim && next.version > stored.version ? { accepted: true, notified: null } : refused;
}

export function ranking(key, names) {
  const score = (name) => blake2b(key, { key: Buffer.from(name).subarray(0, 64), length: 8 }).toString("hex");
  const scored = names.map((name) => [score(name), name]);
  return scored.sort(([one], [other]) => (one < other ? 1 : -1)).map(([, name]) => name);
}
