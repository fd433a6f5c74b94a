// A server in Node that has its sessions in coatcheck's session service. Node 18 or newer, and service.mjs beside it.
// SERVICE=http://127.0.0.1:8100 CREDENTIAL=shop.1.... PORT=3000 node client.mjs
import http from "node:http";
import { ask } from "./service.mjs";

const { PORT } = process.env;

// What the browser is to be given goes back to it, whatever else the page answers.
function answer(response, status, given, text) {
  response.setHeader("Set-Cookie", given?.set_cookie ?? []);
  response.setHeader("Cache-Control", "no-store");
  response.writeHead(status, { "Content-Type": "text/plain" }).end(text);
}

async function page(request, response) {
  const shown = { cookie: request.headers.cookie ?? "", client: request.socket.remoteAddress };
  if (request.method === "POST" && request.url.startsWith("/login/")) {
    const user = decodeURIComponent(request.url.slice("/login/".length)); // after you have checked a password
    const given = await ask("sessions", { ...shown, user });
    return answer(response, 200, given, `welcome, ${given.session.user}`);
  }
  if (request.method === "POST" && request.url === "/logout") {
    return answer(response, 200, await ask("sessions/close", shown), "good bye");
  }
  const given = await ask("sessions/renew", shown);
  if (!given?.session.user) return answer(response, 401, given, "log in first");
  if (request.method === "POST" && request.url === "/add") {
    // With the version, no click is lost: who was overtaken looks again.
    for (let tries = 0; ; tries++) {
      const now = tries ? (await ask("sessions/verify", shown)).session : given.session;
      try {
        const items = (now.data.items ?? 0) + 1;
        const changed = await ask("sessions/update", { ...shown, set: { items }, version: now.version });
        return answer(response, 200, changed, `${items}`);
      } catch (refused) {
        if (refused.status !== 409 || tries >= 20) throw refused;
      }
    }
  }
  answer(response, 200, given, `${given.session.user} ${given.session.data.items ?? 0}`);
}

http
  .createServer((request, response) =>
    page(request, response).catch((error) => answer(response, error.status === 409 ? 409 : 503, null, "try again"))
  )
  .listen(Number(PORT), "127.0.0.1", () => console.log(`listening on ${PORT}`));
