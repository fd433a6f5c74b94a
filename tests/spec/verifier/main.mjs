// A second reading of docs/spec, in another language.
//
// node main.mjs answer            one case a line (JSON) comes in, its answer goes out
// node main.mjs make SEED COUNT   COUNT cases with their answers, the same for each SEED

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import * as chains from "./chain.mjs";
import * as entries from "./entry.mjs";
import * as gcmSiv from "./gcm_siv.mjs";
import { Ring, openToken, sealToken } from "./token.mjs";

const bytes = (hex) => Buffer.from(hex, "hex");
const rings = new Map();

function ringOf({ secrets, primary = 0 }) {
  const name = secrets.join() + primary;
  if (!rings.has(name)) rings.set(name, new Ring(secrets.map(bytes), primary));
  return rings.get(name);
}

const ANSWERS = {
  gcm_siv: (ask) => gcmSiv.seal(bytes(ask.key), bytes(ask.nonce), bytes(ask.plain), bytes(ask.associated)).toString("hex"),
  open_token: (ask) => openToken(ringOf(ask), ask.purpose, ask.audience, ask.text),
  seal_token: (ask) => sealToken(ringOf(ask), ask.purpose, ask.audience, bytes(ask.nonce), ask.token),
  show: ({ chain, shown, now, grace, newest_shown_at, rotate_after, id }) => {
    const after = chains.show(chain, shown, now, grace, newest_shown_at);
    const mints = chains.needsSuccessor(after.chain, after.verdict, now, rotate_after);
    const minted = mints ? chains.mint(after.chain, id, now) : after.chain;
    return { verdict: after.verdict, chain: minted, told: chains.told(minted, now, grace), packed: chains.pack(minted).toString("hex") };
  },
  open_entry: (ask) => entries.openEntry(ringOf(ask), ask.farm, bytes(ask.key), bytes(ask.raw)),
  seal_entry: (ask) => entries.sealEntry(ringOf(ask), ask.farm, bytes(ask.key), bytes(ask.nonce), ask.entry).toString("hex"),
  covers: ({ history, version }) => entries.covers(history, version),
  written: ({ history, version }) => entries.written(history, version),
  put: ({ stored, seen, new: next }) => entries.judgePut(stored, seen, next),
  ranking: ({ key, names }) => entries.ranking(bytes(key), names),
};

const answer = (ask) => ANSWERS[ask.kind](ask);

// -- cases of its own ---------------------------------------------------------------------------------------------

class Dice {
  constructor(seed) {
    this.seed = seed;
    this.count = 0;
  }
  hex(size) {
    let out = "";
    while (out.length < 2 * size) out += createHash("sha256").update(`${this.seed} ${this.count++}`).digest("hex");
    return out.slice(0, 2 * size);
  }
  below(limit) {
    return Number(BigInt("0x" + this.hex(7)) % BigInt(limit));
  }
  of(items) {
    return items[this.below(items.length)];
  }
}

const START = 1763700000000;

function damaged(dice, raw) {
  const out = Buffer.from(raw);
  out[dice.below(out.length)] ^= 1 << dice.below(8);
  return out;
}

function tokenCase(dice) {
  const secrets = [dice.hex(32), dice.hex(48), dice.hex(32)].slice(0, 1 + dice.below(3));
  const ask = { secrets, primary: dice.below(secrets.length), audience: dice.of(["farm", "shop-1"]), purpose: dice.of(["anonymous", "login"]) };
  const token = { key: dice.hex(16), session_id: dice.hex(16), timestamp: dice.below(2 ** 42), list_number: dice.below(64), version: dice.hex(16) };
  if (dice.below(20) === 0) token.timestamp = 2 ** 42 + dice.below(2 ** 40);
  const nonce = dice.hex(12);
  if (dice.below(3) === 0) return { kind: "seal_token", ...ask, nonce, token };
  let text = sealToken(ringOf(ask), ask.purpose, ask.audience, bytes(nonce), token);
  const other = { ...ask };
  switch (dice.below(10)) {
    case 0: text = damaged(dice, Buffer.from(text, "base64url")).toString("base64url"); break;
    case 1: other.audience = "another"; break;
    case 2: other.purpose = ask.purpose === "login" ? "anonymous" : "login"; break;
    case 3: other.secrets = [dice.hex(32)]; other.primary = 0; break;
    case 4: text = text.slice(0, dice.below(116)) + dice.of(["", "+", "/", " ", "é"]); break;
  }
  return { kind: "open_token", ...other, text };
}

function chainCases(dice, count) {
  const grace = dice.of([0, 1000, 30000]);
  const rotate_after = dice.of([0, 1000, 60000]);
  let now = START;
  let newest = null;
  const all = [{ id: dice.hex(16), minted_at: now }];
  let chain = { current: all[0], next: null, retired: [], forgotten_at: 0 };
  const cases = [];
  for (let n = 0; n < count; n++) {
    now += dice.of([0, 1, grace, grace + 1, 2 * grace + 1, rotate_after, dice.below(100000)]);
    if (dice.below(20) === 0) now -= dice.below(2000);
    const likely = [chain.current, chain.next ?? chain.current, dice.of(all.slice(-40)), dice.of(all.slice(-4))];
    let shown = dice.of(likely);
    if (dice.below(12) === 0) shown = { ...shown, minted_at: shown.minted_at + dice.below(3) - 1 };
    if (dice.below(25) === 0) shown = { id: dice.hex(16), minted_at: dice.of([0, chain.forgotten_at, now]) };
    const ask = { kind: "show", chain, shown: { id: shown.id, minted_at: shown.minted_at }, now, grace, rotate_after, id: dice.hex(16) };
    ask.newest_shown_at = dice.of([null, newest]);
    const told = answer(ask);
    cases.push(ask);
    chain = told.chain;
    if (chain.next !== null) all.push({ ...chain.next });
    if (["current", "next"].includes(told.verdict)) newest = now;
  }
  return cases;
}

const versionOf = (dice) =>
  dice.of(["00000001", "00000002", "00000003", "0000ffff"]) + dice.of(["aaaaaa0102030405", "bbbbbb0102030405", "aaaaaa0102030406"]) + dice.of(["00000000", "00000001", "00000002", "000000ff"]);

function entryCase(dice) {
  const secrets = [dice.hex(32), dice.hex(32)];
  const ask = { secrets, primary: dice.below(2), farm: "farm", key: dice.hex(16) };
  const flags = dice.of([0, 0, 1, 3]);
  const history = Array.from({ length: dice.of([0, 1, 2, 16]) }, () => versionOf(dice));
  const entry = { flags, version: versionOf(dice), history, body: flags ? "" : dice.hex(dice.below(200)) };
  const nonce = dice.hex(12);
  if (dice.below(3) === 0) return { kind: "seal_entry", ...ask, nonce, entry };
  let raw = entries.sealEntry(ringOf(ask), ask.farm, bytes(ask.key), bytes(nonce), entry);
  const fate = dice.below(8);
  if (fate === 0) raw = damaged(dice, raw);
  if (fate === 1) raw = raw.subarray(0, dice.below(raw.length));
  if (fate === 2) ask.key = dice.hex(16);
  if (fate === 3) raw = damaged(dice, raw.subarray(0, 19)).length === 19 ? Buffer.concat([damaged(dice, raw.subarray(0, 19)), raw.subarray(19)]) : raw;
  return { kind: "open_entry", ...ask, raw: raw.toString("hex") };
}

function ruleCase(dice) {
  const one = () => ({ flags: dice.of([0, 0, 0, 1, 3]), version: versionOf(dice) });
  switch (dice.below(8)) {
    case 0: {
      const history = Array.from({ length: dice.of([0, 1, 3, 15, 16]) }, (_, n) => (n + 2).toString(16).padStart(8, "0") + versionOf(dice).slice(8));
      return { kind: dice.of(["covers", "written"]), history, version: versionOf(dice) };
    }
    case 1:
      return { kind: "ranking", key: dice.hex(16), names: ["session-1", "session-2", "é".repeat(40), "x".repeat(70), dice.hex(4)] };
    default: {
      const stored = dice.below(6) ? one() : null;
      const next = dice.below(6) ? one() : stored ?? one();
      return { kind: "put", stored, seen: dice.of([null, versionOf(dice), stored === null ? null : stored.version]), new: next };
    }
  }
}

function* cases(seed, count) {
  for (let n = 0; n < count; ) {
    const dice = new Dice(`${seed}/${n}`);
    const made = n % 40 === 20 ? chainCases(dice, 20) : [n % 8 === 1 ? entryCase(dice) : n % 8 === 3 ? ruleCase(dice) : tokenCase(dice)];
    for (const ask of made) {
      if (n++ < count) yield ask;
    }
  }
}

async function main([command, seed, count]) {
  if (command === "make") {
    let lines = "";
    for (const ask of cases(seed, Number(count))) {
      lines += JSON.stringify({ ask, answer: answer(ask) }) + "\n";
      if (lines.length > 1 << 16) {
        process.stdout.write(lines);
        lines = "";
      }
    }
    process.stdout.write(lines);
    return;
  }
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\n");
  }
}

await main(process.argv.slice(2));
