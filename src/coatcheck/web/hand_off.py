"""Requests that go from site to site, before the app sees them (protocol section 12, mission A1, A9)."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from coatcheck.drivers.hand_off_desk import HandOffDesk
from coatcheck.hand_off.rules import Go, HandOffs, Pass, Refuse
from coatcheck.sessions.answer import CookieTransport
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.opened import Opened
from coatcheck.web.interface import Middleware, Receive, Scope, Send

MAX_BODY: Final = 1 << 20
"""Bytes of a body that is sent from site to site: each of them reads it, and its browser sends it again."""


class HandOffDoor:
    """What a web server answers in the app's place, where a request or its session belongs to another site."""

    def __init__(self, middleware: Middleware, cookies: CookiePolicy, transport: CookieTransport) -> None:
        self._middleware = middleware
        self._desk = HandOffDesk(cookies, transport)

    async def answer(
        self, hand_offs: HandOffs, opened: Opened, scope: Scope, receive: Receive, send: Send
    ) -> Scope | None:
        """The scope that the app is to see, or ``None`` if the request was answered here."""
        path, query = _target(scope)
        if not hand_offs.concerns(path, query):
            return scope
        fetched = next((value for name, value in scope["headers"] if name == b"sec-fetch-site"), b"")
        found = await self._desk.ask(
            hand_offs, opened, scope["method"], path, query, cross_site=fetched == b"cross-site"
        )
        if isinstance(found, Pass):
            return {**scope, "query_string": found.query.encode("latin-1")}
        if isinstance(found, Go) and not await _drained(scope, receive):
            found = Refuse(413, f"a body of more than {MAX_BODY} bytes is not sent from site to site")
        if isinstance(found, Go):
            found = await self._desk.redirect(opened, found)
        answer = self._desk.refusal(found) if isinstance(found, Refuse) else found
        if answer.refused:
            await self._middleware.refuse(scope, send, answer, "session not handed over")
            return None
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": b""})
        return None


def _target(scope: Scope) -> tuple[str, str]:
    """Path and query as they were sent, as far as the server tells."""
    raw = scope.get("raw_path")
    path = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
    return path, scope.get("query_string", b"").decode("latin-1")


async def _drained(scope: Scope, receive: Receive) -> bool:
    """Read the body, which the browser sends again to the next site; ``False`` if it is too large for that."""
    if scope["method"] in ("GET", "HEAD"):
        return True
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
        if size > MAX_BODY:
            return False
    return True
