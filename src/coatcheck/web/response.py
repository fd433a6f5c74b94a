"""One answer on its way out: the session is saved before its head leaves, and ends what stays open (mission N4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.watching import Watch
from coatcheck.errors import (
    CoatcheckError,
    ConflictError,
    SessionClosed,
    SessionDataError,
    SessionUnavailable,
    UnavailableReason,
)
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.lifecycle import Saved
from coatcheck.sessions.mapping import Session, replace
from coatcheck.web.interface import Header, Message, Receive, Scope, Send
from coatcheck.web.open_stream import OpenStream, has_length, may_read_later
from coatcheck.web.open_websocket import POLICY_VIOLATION, SCOPE_KEY, TRY_AGAIN_LATER, OpenWebSocket
from coatcheck.web.replaced import ABSENT, content_of, other_layer
from coatcheck.web.routes import with_route
from coatcheck.web.uncached import guard

if TYPE_CHECKING:
    from coatcheck.web.asgi import SessionMiddleware

NOTHING = Saved()
NO_HEADERS: tuple[Header, ...] = ()
TOO_LATE = (
    "a session cannot be begun or regenerated while the response is streamed: its head has left, and the browser "
    "cannot be given the cookie any more; do it before the response starts"
)


class Response:
    """One answer on its way out: saves the session before the head leaves."""

    __slots__ = (
        "_closed", "_ending", "_failed", "_header", "_headers", "_middleware", "_replaced", "_scope", "_send",
        "_session", "_sessions", "_stream", "_streaming", "_watch", "_websocket",
    )  # fmt: skip

    def __init__(
        self,
        middleware: SessionMiddleware,
        sessions: Sessions,
        scope: Scope,
        session: Session,
        header: bytes,
        send: Send,
    ) -> None:
        self._middleware = middleware
        self._sessions = sessions
        self._scope = scope
        self._session = session
        self._header = header
        self._send = send
        self._streaming = False
        self._replaced = False
        self._failed = False
        self._closed = False
        """Whether this very response closed its session: it may well say good-bye in many pieces."""
        self._headers: Iterable[Header] = ()
        self._stream: OpenStream | None = None
        self._websocket: OpenWebSocket | None = None
        self._watch: Watch | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def was_ended(self) -> bool:
        """Whether its session ended while it was open, so that the web server ended it."""
        return self._ending is not None

    def finish(self) -> None:
        """The app is done: nobody need be told any more when the session ends."""
        if self._watch is not None:
            self._sessions.watching.forget(self._watch)
            self._watch = None

    def send(self, message: Message) -> Awaitable[None]:
        """What needs no waiting is passed straight on, without a coroutine of our own."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._scope.get("session", ABSENT) is not self._session:
                self._adopt_unless_failed(message["status"])
            if self._sessions.is_settled(self._session):
                return self._send(self._with_headers(message, NOTHING))
            return self._start(message)
        if self._streaming or self._replaced or message.get("more_body"):
            return self._continue(message)
        return self._send(message)

    def _adopt_unless_failed(self, status: int) -> None:
        if status != 500:
            self._adopt()
        elif not self._session._request.closing:
            self._failed = True

    def _adopt(self) -> None:
        """Frameworks replace ``scope["session"]`` instead of changing it; other session layers do so for themselves."""
        found = self._scope.get("session", ABSENT)
        layer = other_layer(found, self._scope)
        if layer is not None:
            self._middleware.name_layer(layer)
            return
        try:
            content = content_of(found)
        except SessionDataError:
            self._failed = True  # the app's own error page may pass, without a session
            raise
        replace(self._session, content)

    async def _continue(self, message: Message) -> None:
        if self._replaced:
            return
        if message.get("more_body"):
            if not self._streaming:
                self._streaming = True
                self._watch_stream()
        elif message["type"] == "http.response.body":
            if self.was_ended:
                return
            self.finish()
            await self._save_late()
        await (self._send(message) if self._stream is None else self._stream.send(message))

    def _watch_stream(self) -> None:
        if self._may_watch() and not has_length(self._headers):
            self._stream = OpenStream(self._send)
            self._watch_session()

    def _may_watch(self) -> bool:
        return self._session._request.copy_held is not None and not self._closed and self._sessions.ends_streams

    def _watch_session(self) -> None:
        assert self._session._request.copy_held is not None
        self._watch = self._sessions.watching.watch(self._session._request.copy_held.key, self._end)

    def _end(self, end: SessionEnd) -> None:
        self._watch = None
        self._ending = asyncio.get_running_loop().create_task(self._end_now(end))

    async def _end_now(self, end: SessionEnd) -> None:
        with contextlib.suppress(OSError):  # the client was faster
            if self._stream is not None:
                await self._stream.end()
            elif self._websocket is not None:
                code = TRY_AGAIN_LATER if end is SessionEnd.UNKNOWN else POLICY_VIOLATION
                await self._websocket.hang_up(code, f"session {end.value}")

    async def _start(self, message: Message) -> None:
        saved = NOTHING
        if message["status"] == 500 and not self._session._request.closing:
            # The error page of a request that failed half-way. Starlette's own middleware, which stands between the
            # app and its error page, keeps nothing of what such a request did; nor does Django. A logout counts.
            self._failed = True
        if not self._failed:
            try:
                saved = await self._save()
            except SessionUnavailable as unavailable:
                status = 429 if unavailable.reason is UnavailableReason.TOO_MANY_NEW else 503
                await self._replace(status, f"session not saved: {unavailable.reason.value}")
                return
            except (SessionClosed, ConflictError) as refused:
                await self._replace(409, f"session not saved: {refused}")
                return
        await self._send(self._with_headers(message, saved))

    def _with_headers(self, message: Message, saved: Saved) -> Message:
        """``Set-Cookie`` where needed; and where the session was touched, what keeps caches away."""
        session = self._session
        self._closed = saved.clear
        self._headers = message.get("headers", ())
        # A logged-out or dead cookie is deleted by close alone; the session is in copy_held from here on.
        middleware = self._middleware
        cookies = middleware.cookies_for(session, saved, self._header)
        if session.accessed or cookies or may_read_later(message["status"], self._headers):
            headers = message["headers"] = guard(self._headers, cookies)
            if session._request.copy_held is None and (
                route := middleware.route_for(message["status"], headers, self._header)
            ):
                headers.append(route)
        elif session.is_new and (route := middleware.route_for(message["status"], self._headers, self._header)):
            message["headers"] = with_route(self._headers, route)
        return message

    async def _save(self) -> Saved:
        session = self._session
        sessions = self._sessions
        try:
            if sessions.needs_save(session):
                if session._request.copy_held is None:
                    client = self._scope.get("client")
                    sessions.admit_new(client[0] if client else None)
                return await sessions.save(session)
        except SessionDataError:
            self._failed = True  # the app's own error page may pass, without a session
            raise
        issue = sessions.issue(session)
        return NOTHING if issue is None else Saved(issue)

    async def _save_late(self) -> None:
        """Changes made while the body was streamed: stored before the last piece leaves."""
        sessions, session = self._sessions, self._session
        if self._scope.get("session", ABSENT) is not session and not self._failed:
            self._adopt()
        if not self._failed and not sessions.is_settled(session) and sessions.needs_save(session):
            if session.is_new or session._request.new_login:
                raise CoatcheckError(TOO_LATE)
            await sessions.save(session)

    async def _replace(self, status: int, why: str) -> None:
        """What the app answered is not true: its change was not stored."""
        self._replaced = True
        await self._middleware.refuse(self._scope, self._send, status, why)

    def stand_between(self, receive: Receive) -> Receive:
        """Where the web server is to end a WebSocket itself, something must stand between it and the app."""
        if not self._sessions.ends_streams:
            return receive
        self._websocket = self._scope.get(SCOPE_KEY)
        if self._websocket is not None:
            return receive
        self._websocket = OpenWebSocket(receive, self._send)
        self._send = self._websocket.send
        return self._websocket.receive

    async def send_websocket(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] != "websocket.accept":
            await self._send(message)
            return
        if self._scope.get("session", ABSENT) is not self._session:
            self._adopt()
        try:
            saved = await self._save()
        except (SessionUnavailable, SessionClosed, ConflictError):
            self._replaced = True  # the app finds its connection closed when it next receives
            await self._middleware.refuse(self._scope, self._send, 503, "")
            return
        self._closed = saved.clear
        cookies = self._middleware.cookies_for(self._session, saved, self._header)
        if self._session._request.copy_held is None and (
            route := self._middleware.route_for(101, NO_HEADERS, self._header)
        ):
            cookies.append(route)
        if cookies:
            message["headers"] = [*message.get("headers", ()), *cookies]
        await self._send(message)
        if self._may_watch():
            self._watch_session()
