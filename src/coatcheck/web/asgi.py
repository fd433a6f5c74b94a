"""ASGI middleware: where requests enter (mission B1).

``scope["session"]`` is a dict that behaves as Starlette's. The response waits until what the request
did is acknowledged; a cookie is set only when the browser must learn something new.
"""

from __future__ import annotations

from asyncio import get_running_loop

from coatcheck.drivers.sessions import Sessions
from coatcheck.durable_words import CONNECT_ANEW, GO_ELSEWHERE, HEADER
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import (
    CoatcheckError,
    ConflictError,
    SessionClosed,
    SessionUnavailable,
)
from coatcheck.events import Event, EventKind
from coatcheck.sessions.answer import Answer
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.opened import Opened, Phase
from coatcheck.sessions.routes import Sticky
from coatcheck.web.arguments import check_arguments, check_for_loops, check_moving_in
from coatcheck.web.device import DeviceDoor
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.first_visits import FirstVisits
from coatcheck.web.hand_off import HandOffDoor
from coatcheck.web.holding import HeldWebSocket, holding_for
from coatcheck.web.interface import ASGIApp, Message, Receive, Scope, Send
from coatcheck.web.moving_in import MovingIn
from coatcheck.web.open_websocket import POLICY_VIOLATION, is_caused_by_hang_up
from coatcheck.web.replaced import MAX_LAYERS_NAMED
from coatcheck.web.response import ResponseSender


class SessionMiddleware:
    """Wraps an ASGI app, unmodified, with sessions that outlive any server.

    ``sessions`` is opened at lifespan startup, or with the first request where the server has no lifespan.
    ``cookies``: ``Secure`` and ``__Host-`` if you say nothing, but for sessions in memory. ``route_tag`` names this
    web server to the local director; ``sticky`` says which browsers are told it: all, or those with a session.
    ``error_pages``: what the middleware's own answers (503, 409) look like: pages by name
    (:class:`coatcheck.ErrorPages`), or a function of scope, status and detail. ``durable_websockets``: whether a
    coatcheck director is in front, and nobody else can speak to this server: then it can hold durable WebSockets.
    ``moving_in``: the sessions of before that continue here (:class:`coatcheck.web.moving_in.MovingIn`).

    Raises :class:`coatcheck.ConfigError` for an argument of the wrong kind.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        cookies: CookiePolicy | None = None,
        route_tag: str | None = None,
        error_pages: ErrorPages | ErrorPage | None = None,
        sticky: Sticky = "browser",
        durable_websockets: bool = False,
        moving_in: MovingIn | None = None,
    ) -> None:
        check_for_loops(sessions, cookies, binds=True)
        check_arguments(app, "an ASGI app", cookies, error_pages, sticky)
        self.app = app
        self.sessions = sessions
        self.requests = 0
        self._error_pages = error_pages
        self._durable_websockets = durable_websockets
        self._transport = transport = sessions.transport_of(cookies or sessions.cookies, route_tag, sticky)
        if moving_in is not None:
            check_moving_in(moving_in, frozenset({transport.anonymous.name.decode(), transport.login.name.decode()}))
            self.app = FirstVisits(app, self, moving_in, transport)
        self._door = HandOffDoor(self, cookies or sessions.cookies, self._transport)
        self._device_door: DeviceDoor | None = None
        if sessions.challenges is not None:
            self._device_door = DeviceDoor(self, self._transport, (cookies or sessions.cookies).device_path)
        self._layers_named: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        self.requests += 1
        header = b""
        for name, value in scope["headers"]:
            if name == b"cookie":
                header = header + b"; " + value if header else value
        client = scope.get("client")
        sessions = self.sessions
        if sessions.loop is not get_running_loop():
            sessions = await sessions.on_this_loop()
        # As Sessions.open does it, without a coroutine where nobody need be asked.
        host = client[0] if client else None
        opened = Opened(
            sessions, header, host, self._transport, scope["method"] if kind == "http" else "GET", scope["headers"]
        )
        if kind == "websocket":
            holding = holding_for(scope, opened, believed=self._durable_websockets)
            if holding.ticket and not await self._take_over(holding, send, receive):
                return
        try:
            if opened.phase is Phase.OPENING and (loading := sessions.requests.open(opened)) is not None:
                await sessions.run_for(opened, loading)
        except SessionUnavailable as unavailable:
            await self.refuse(scope, send, Answer.refusal(unavailable), "session unavailable")
            return
        if kind == "http" and sessions.hand_offs is not None:
            seen = await self._door.answer(sessions.hand_offs, opened, scope, receive, send)
            if seen is None:
                return
            scope = seen
        if (
            kind == "http"
            and self._device_door is not None
            and self._device_door.concerns(opened, scope)
            and await self._device_door.answers(sessions, opened, scope, receive, send)
        ):
            return
        scope["session"] = opened.session
        response = ResponseSender(self, opened, scope, send)
        try:
            if kind == "http":
                await self.app(scope, receive, response.send)
            else:
                receive = response.stand_between(receive)
                await self.app(scope, receive, response.send_websocket)
        except Exception as error:
            if not response.was_ended or not is_caused_by_hang_up(error):
                raise
        finally:
            response.finish()

    async def _take_over(self, holding: HeldWebSocket, send: Send, receive: Receive) -> bool:
        """Open the session of a WebSocket that another web server had; if that cannot be, the director is told why."""
        opened = holding.opened
        try:
            found, holding.left = await opened.home.take_over(opened, holding.ticket)
        except SessionClosed as closed:
            code, why = POLICY_VIOLATION, str(closed)
        except SessionUnavailable as unavailable:
            code, why = GO_ELSEWHERE, str(unavailable)
        except ConflictError as conflict:
            code, why = CONNECT_ANEW, str(conflict)
        else:
            holding.socket = found.socket
            return True
        await receive()
        await send({"type": "websocket.accept", "headers": [(HEADER, holding.ticket)]})
        await send({"type": "websocket.close", "code": code, "reason": why})
        return False

    def name_layer(self, layer: str) -> None:
        """Warn, once for each: what the app does to ``scope["session"]`` there does not reach our session."""
        if layer not in self._layers_named and len(self._layers_named) < MAX_LAYERS_NAMED:
            self._layers_named.add(layer)
            detail = f"{layer} keeps sessions of its own inside the app: there, ours is out of sight and left as it was"
            self.sessions.report(Event(EventKind.SESSION_HIDDEN, detail=detail))

    async def refuse(self, scope: Scope, send: Send, answer: Answer, what: str) -> None:
        """Fail closed, in one line of text that says nothing secret, or as the app wants it shown."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1013, "reason": "session unavailable"})
            return
        page = page_for(self._error_pages, scope, answer.status, f"{what}: {answer.refused}")
        headers = [*page.headers, (b"content-length", b"%d" % len(page.body)), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": page.body})

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_opening() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._open_or_fail(send)
            return message

        async def send_closing(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.sessions.here().aclose()
            await send(message)

        await self.app(scope, receive_opening, send_closing)

    async def _open_or_fail(self, send: Send) -> None:
        try:
            await self.sessions.on_this_loop()
        except CoatcheckError as error:
            # Said in so many words: a server takes a mere exception for "no lifespan here" and serves on.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise


__all__ = ["SessionMiddleware"]
