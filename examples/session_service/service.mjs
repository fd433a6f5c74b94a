// Asks coatcheck's session service, for client.mjs and site.mjs. Node 18 or newer, nothing to install.
const { SERVICE, CREDENTIAL } = process.env;

export class Refused extends Error {
  constructor(status, type) {
    super(type);
    this.status = status;
  }
}

// One call of the service; undefined where the browser shows no session.
export async function ask(path, body) {
  const answer = await fetch(`${SERVICE}/v1/${path}`, {
    method: "POST",
    headers: { Authorization: `Bearer ${CREDENTIAL}`, "Content-Type": "application/json" },
    body: JSON.stringify(body),
    redirect: "error", // the service sends nobody elsewhere, and nobody else is told the credential or a cookie
    signal: AbortSignal.timeout(10_000),
  });
  const found = await answer.json();
  if (answer.ok && (found?.session || found?.set_cookie)) return found; // all its answers have one of them
  if (found?.type === "urn:coatcheck:problem:no-session") return undefined;
  throw new Refused(answer.status, found?.type);
}
