// docs/spec/chain.md: C. A link is {id, minted_at}; a retired one {id, minted_at, retired_at, moved_on_at}.

const MOST_RETIRED = 32;
const link = ({ id, minted_at }) => ({ id, minted_at });
const isShown = (one, shown) => one !== null && one.id === shown.id && one.minted_at === shown.minted_at;
const retire = (one, retired_at, moved_on_at) => ({ ...link(one), retired_at, moved_on_at });

function isDead(old, now, grace) {
  return grace === 0 || (old.moved_on_at !== null && now - old.moved_on_at > grace);
}

function trim(chain, now, grace) {
  const alive = chain.retired.filter((old) => !isDead(old, now, grace));
  const dropped = alive.slice(0, Math.max(0, alive.length - MOST_RETIRED));
  const forgotten_at = dropped.length ? Math.max(chain.forgotten_at, dropped.at(-1).minted_at) : chain.forgotten_at;
  return { ...chain, retired: alive.slice(dropped.length), forgotten_at };
}

function withoutLostSuccessor(chain, now, grace) {
  if (chain.next === null || grace === 0 || now - chain.next.minted_at <= 2 * grace) return chain;
  return trim({ ...chain, next: null, retired: [...chain.retired, retire(chain.next, now, now)] }, now, grace);
}

function markMovedOn(chain, now, grace) {
  const mark = (old) =>
    old.moved_on_at === null && now - old.retired_at > grace ? { ...old, moved_on_at: now } : old;
  return { ...chain, retired: chain.retired.map(mark) };
}

export function show(chain, shown, now, grace, newestShownAt) {
  if (isShown(chain.current, shown)) {
    return { verdict: "current", chain: markMovedOn(withoutLostSuccessor(chain, now, grace), now, grace) };
  }
  if (isShown(chain.next, shown)) {
    const retired = [...chain.retired, retire(chain.current, now, null)];
    const moved = { ...chain, current: link(chain.next), next: null, retired };
    return { verdict: "next", chain: markMovedOn(trim(moved, now, grace), now, grace) };
  }
  const at = chain.retired.findLastIndex((old) => isShown(old, shown));
  if (at < 0) return { verdict: shown.minted_at <= chain.forgotten_at ? "dead" : "stolen", chain };
  const old = chain.retired[at];
  if (isDead(old, now, grace)) return { verdict: "stolen", chain };
  if (newestShownAt !== null && now - newestShownAt > 2 * grace) {
    const lost = [chain.current, chain.next].filter((one) => one !== null).map((one) => retire(one, now, now));
    const retired = [...chain.retired.filter((_, n) => n !== at), ...lost];
    return { verdict: "returned", chain: trim({ ...chain, current: link(old), next: null, retired }, now, grace) };
  }
  return { verdict: now - old.retired_at <= grace ? "in_grace" : "late", chain };
}

export function needsSuccessor(chain, verdict, now, rotateAfter) {
  const may = ["current", "next", "returned"].includes(verdict) && chain.next === null;
  return may && (rotateAfter === 0 || now - chain.current.minted_at >= rotateAfter);
}

export function mint(chain, id, now) {
  const before = [chain.current, ...chain.retired].map((earlier) => earlier.minted_at);
  return { ...chain, next: { id, minted_at: Math.max(now, ...before.map((time) => time + 1)) } };
}

export function told(chain, now, grace) {
  if (chain.next === null || (grace !== 0 && now - chain.next.minted_at > grace)) return chain.current;
  return chain.next;
}

// -- C17: MessagePack, every value in its shortest form

const uint = (value) => {
  if (value < 0x80) return Buffer.from([value]);
  if (value < 0x100) return Buffer.from([0xcc, value]);
  const out = Buffer.alloc(9);
  if (value < 0x10000) return out.writeUInt16BE(value, 1), (out[0] = 0xcd), out.subarray(0, 3);
  if (value < 0x100000000) return out.writeUInt32BE(value, 1), (out[0] = 0xce), out.subarray(0, 5);
  return out.writeBigUInt64BE(BigInt(value), 1), (out[0] = 0xcf), out;
};
const bin = (hex) => Buffer.concat([Buffer.from([0xc4, hex.length / 2]), Buffer.from(hex, "hex")]);
const nil = Buffer.from([0xc0]);
const list = (items) => {
  const head = items.length < 16 ? [0x90 | items.length] : [0xdc, items.length >> 8, items.length & 255];
  return Buffer.concat([Buffer.from(head), ...items]);
};
const packLink = (one) => list([bin(one.id), uint(one.minted_at)]);

export function pack(chain) {
  const retired = chain.retired.map((old) =>
    list([packLink(old), uint(old.retired_at), old.moved_on_at === null ? nil : uint(old.moved_on_at)]),
  );
  const next = chain.next === null ? nil : packLink(chain.next);
  return list([packLink(chain.current), next, list(retired), uint(chain.forgotten_at)]);
}
