// docs/spec/token.md: K, S and T.

import { hkdfSync } from "node:crypto";
import * as gcmSiv from "./gcm_siv.mjs";

const derived = new Map();

function derive(secret, info, length) {
  const name = secret.toString("hex") + " " + info.toString("hex") + " " + length;
  if (!derived.has(name)) {
    const whole = Buffer.concat([Buffer.from("coatcheck/1/"), info]);
    derived.set(name, Buffer.from(hkdfSync("sha256", secret, Buffer.alloc(0), whole, length)));
  }
  return derived.get(name);
}

const keyId = (secret) => derive(secret, Buffer.from("key-id"), 4);
const scopeOf = (purpose, audience) => Buffer.from(purpose + "\0" + audience);

export class Ring {
  constructor(secrets, primary = 0) {
    if (secrets.some((secret) => secret.length < 32)) throw new Error("a secret is too short");
    this.secrets = new Map(secrets.map((secret) => [keyId(secret).toString("hex"), secret]));
    if (this.secrets.size !== secrets.length) throw new Error("two keys have one ID");
    this.primary = secrets[primary];
  }

  seal(purpose, audience, nonce, plain, context = Buffer.alloc(0)) {
    const scope = scopeOf(purpose, audience);
    const head = Buffer.concat([Buffer.from([1]), keyId(this.primary)]);
    const key = derive(this.primary, scope, 32);
    return Buffer.concat([head, nonce, gcmSiv.seal(key, nonce, plain, Buffer.concat([head, scope, context]))]);
  }

  open(purpose, audience, sealed, context = Buffer.alloc(0)) {
    const head = sealed.subarray(0, 5);
    const secret = head.length === 5 && head[0] === 1 ? this.secrets.get(head.subarray(1).toString("hex")) : undefined;
    if (secret === undefined) {
      if (sealed.length < 33) return { refused: "malformed" };
      return { refused: sealed[0] !== 1 ? "unknown_format" : "unknown_key" };
    }
    if (sealed.length < 33) return { refused: "forged" };
    const scope = scopeOf(purpose, audience);
    const key = derive(secret, scope, 32);
    const plain = gcmSiv.open(key, sealed.subarray(5, 17), sealed.subarray(17), Buffer.concat([head, scope, context]));
    return plain === null ? { refused: "forged" } : { plain };
  }
}

const GREATEST = (1n << 42n) - 1n;

export function sealToken(ring, purpose, audience, nonce, token) {
  const at = BigInt(token.timestamp) > GREATEST ? GREATEST : BigInt(token.timestamp);
  const number = ((BigInt(token.list_number) << 42n) | at).toString(16).padStart(12, "0");
  const plain = Buffer.from(token.key + token.session_id + number + token.version, "hex");
  return ring.seal("token/" + purpose, audience, nonce, plain).toString("base64url");
}

export function openToken(ring, purpose, audience, text) {
  if (!/^[A-Za-z0-9_-]{116}$/.test(text)) return { refused: "malformed" };
  const { plain, refused } = ring.open("token/" + purpose, audience, Buffer.from(text, "base64url"));
  if (refused) return { refused };
  const number = BigInt("0x" + plain.toString("hex", 32, 38));
  return {
    key: plain.toString("hex", 0, 16),
    session_id: plain.toString("hex", 16, 32),
    timestamp: Number(number & GREATEST),
    list_number: Number(number >> 42n),
    version: plain.toString("hex", 38, 54),
  };
}
