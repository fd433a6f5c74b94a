// A site of its own in Node: pages under /tickets/, whose visitors come from another site with their sessions.
// SERVICE=http://127.0.0.1:8100 CREDENTIAL=tickets.1.... PORT=3000 node site.mjs; SERVICE knows [sites] and is told site = "tickets".
import http from "node:http";
import { ask } from "./service.mjs";

const { PORT } = process.env;

function answer(response, status, cookies, headers, text) {
  response.setHeader("Set-Cookie", cookies);
  response.writeHead(status, { "Cache-Control": "no-store", ...headers }).end(text);
}

async function page(request, response) {
  const shown = { cookie: request.headers.cookie ?? "", client: request.socket.remoteAddress };
  const cross_site = request.headers["sec-fetch-site"] === "cross-site";
  // Before anything else: does this page live here, and has its visitor come from another site?
  const found = await ask("hand-off", { ...shown, method: request.method, url: request.url, cross_site });
  if (found.todo !== "serve") {
    const location = found.todo === "redirect" ? { Location: found.url } : {};
    return answer(response, found.status, found.set_cookie, { ...found.headers, ...location }, found.words);
  }
  if (request.method === "POST" && found.url === "/tickets/logout") { // a link from elsewhere logs nobody out
    const closed = await ask("sessions/close", shown);
    return answer(response, 200, closed.set_cookie, {}, "good bye");
  }
  const given = await ask("sessions/renew", shown);
  answer(response, 200, given?.set_cookie ?? [], {}, `${given?.session.user ?? "nobody"} at ${found.url}`);
}

http
  .createServer((request, response) => page(request, response).catch(() => answer(response, 503, [], {}, "try again")))
  .listen(Number(PORT), "127.0.0.1", () => console.log(`listening on ${PORT}`));
