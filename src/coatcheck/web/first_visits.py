"""Inside the ASGI middleware, where an app's sessions of before continue here: a browser's first visit brings its own.

It stands between the middleware and the app only where it is asked for, so other requests take no notice of it.
"""

from __future__ import annotations

import asyncio

from coatcheck.errors import SessionUnavailable
from coatcheck.sessions.answer import Answer, CookieTransport
from coatcheck.sessions.mapping import Session, move_in
from coatcheck.sessions.requests import FAILED
from coatcheck.web.interface import ASGIApp, Message, Middleware, Receive, Scope, Send
from coatcheck.web.moving_in import FormerSession, MovingIn, check_content

_HEADS = ("http.response.start", "websocket.accept")


class FirstVisits:
    """``transport``: how the browsers show sessions of ours."""

    def __init__(self, app: ASGIApp, middleware: Middleware, moving_in: MovingIn, transport: CookieTransport) -> None:
        self._app = app
        self._middleware = middleware
        self._moving_in = moving_in
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = scope.get("session")
        if isinstance(session, Session) and session.is_new and not self._moving_in.is_over():
            try:
                found = await self._find(scope)
            except SessionUnavailable as unavailable:
                await self._middleware.refuse(scope, send, Answer.refusal(unavailable), "session unavailable")
                return
            if found is not None and _move_in(session, found):
                send = _Leaving(scope, session, found, send).send
        await self._app(scope, receive, send)

    async def _find(self, scope: Scope) -> FormerSession | None:
        header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        if self._transport.login.read(header) or self._transport.read_anonymous(header):
            return None
        cookies = _cookies_in(header)
        if self._moving_in.cookies.isdisjoint(cookies):
            return None
        return await asyncio.to_thread(self._moving_in.find, cookies)


class _Leaving:
    """The response of a first visit: when its head leaves, the session is stored here."""

    def __init__(self, scope: Scope, session: Session, found: FormerSession, send: Send) -> None:
        self._scope = scope
        self._session = session
        self._found = found
        self._send = send

    async def send(self, message: Message) -> None:
        is_head = message["type"] in _HEADS and message.get("status") != FAILED  # of a failed request nothing is stored
        if is_head:
            message["headers"] = [*message.get("headers", ()), _deletion(self._found)]
            if not self._scope.get("session") and self._session.user == self._found.user:
                self._session.close()  # the app has logged out whom we had named
        await self._send(message)
        if is_head:
            if not self._session.is_new:
                await asyncio.to_thread(self._found.leave)
            elif not len(self._session):
                await asyncio.to_thread(self._found.end)


def _move_in(session: Session, found: FormerSession) -> bool:
    if not check_content(found.content):
        return False
    move_in(session, found.content, found.user)
    return True


def _cookies_in(header: bytes) -> dict[str, str]:
    pairs = (part.partition("=") for part in header.decode("latin-1").split(";"))
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _deletion(found: FormerSession) -> tuple[bytes, bytes]:
    domain = "" if found.domain is None else f"; Domain={found.domain}"
    text = f'{found.cookie}=""; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path={found.path}{domain}'
    return (b"set-cookie", text.encode("latin-1"))
