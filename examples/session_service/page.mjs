// A page in Node behind a proxy that asks coatcheck who a request is from. It believes the signed header, and no other.
// JWKS=http://127.0.0.1:8100/v1/jwks AUDIENCE=https://shop.example ISSUER=coatcheck:farm PORT=3000 node page.mjs
import crypto from "node:crypto";
import http from "node:http";

const { JWKS, AUDIENCE, ISSUER, PORT } = process.env;
const LEEWAY_S = 5; // for clocks that disagree a little
const ASK_AGAIN_MS = 10_000; // an unknown key asks the service once in this time at most
const KEYS_LIVE_MS = 60_000; // then they are fetched anew, so that a revoked one is forgotten

let keys = new Map();
let askedAt = -Infinity;
let fetchedAt = -Infinity;

async function keyOf(kid) {
  const now = performance.now();
  if ((!keys.has(kid) || now - fetchedAt > KEYS_LIVE_MS) && now - askedAt > ASK_AGAIN_MS) {
    askedAt = now;
    try {
      const found = await (await fetch(JWKS, { redirect: "error", signal: AbortSignal.timeout(10_000) })).json();
      keys = new Map(found.keys.map((jwk) => [jwk.kid, crypto.createPublicKey({ key: jwk, format: "jwk" })]));
      fetchedAt = now;
    } catch (error) {
      // The keys that we have are good: a later request asks again.
      if (!keys.has(kid)) throw new Error("the service does not tell its keys", { cause: error });
    }
  }
  return keys.get(kid);
}

// Whose request it is (RFC 7515, RFC 7519), or undefined.
export async function verified(assertion) {
  try {
    const [head, body, signature, more] = assertion.split(".");
    const { alg, typ, kid } = JSON.parse(Buffer.from(head, "base64url"));
    if (more !== undefined || alg !== "EdDSA" || typ !== "coatcheck-session+jwt") return undefined;
    const key = await keyOf(kid);
    const signed = Buffer.from(`${head}.${body}`);
    if (!key || !crypto.verify(null, signed, key, Buffer.from(signature, "base64url"))) return undefined;
    const who = JSON.parse(Buffer.from(body, "base64url"));
    const now = Date.now() / 1000;
    const inTime = who.iat - LEEWAY_S <= now && now < who.exp + LEEWAY_S;
    return inTime && who.aud === AUDIENCE && who.iss === ISSUER ? who : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined; // none of ours
    throw error;
  }
}

http
  .createServer((request, response) => {
    verified(request.headers["x-session-assertion"] ?? "")
      .then((who) => {
        response.writeHead(who ? 200 : 403, { "Content-Type": "text/plain" });
        response.end(who ? `node ${who.sub} ${who.claims.role ?? ""}` : "no session");
      })
      .catch(() => response.writeHead(503).end("try again"));
  })
  .listen(Number(PORT), "127.0.0.1", () => console.log(`listening on ${PORT}`));
