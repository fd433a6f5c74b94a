// Asks coatcheck's session service, for client.mjs and site.mjs. Node 18 or newer, nothing to install.
const { SERVICE, CREDENTIAL } = process.env;
const TIMEOUT_MS = 10_000; // for the answer's head, then for its body
const MAX_BYTES = 8 << 20; // of an answer

export class Refused extends Error {
  constructor(status, type) {
    super(type);
    this.status = status;
  }
}

async function read(answer) {
  const reader = answer.body.getReader();
  const stop = () => reader.cancel().catch(() => {}); // of what has ended already nothing is left to stop
  const timer = setTimeout(stop, TIMEOUT_MS); // fetch's signal does not always reach a body that comes slowly
  const parts = [];
  let size = 0;
  try {
    for (let next; !(next = await reader.read()).done; parts.push(next.value)) {
      size += next.value.length;
      if (size > MAX_BYTES) throw new Error("the answer is too large");
    }
  } finally {
    clearTimeout(timer);
    stop();
  }
  return JSON.parse(Buffer.concat(parts).toString()); // of half an answer: an error
}

// One call of the service; undefined where the browser shows no session.
export async function ask(path, body) {
  const answer = await fetch(`${SERVICE}/v1/${path}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${CREDENTIAL}`, "Content-Type": "application/json" },
    body: JSON.stringify(body),
    redirect: "error", // the service sends nobody elsewhere, and nobody else is told the credential or a cookie
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const found = await read(answer);
  if (answer.ok && (found?.session || found?.set_cookie)) return found; // all its answers have one of them
  if (found?.type === "urn:coatcheck:problem:no-session") return undefined;
  throw new Refused(answer.status, found?.type);
}
