"""One answer on its way out: the session is saved before its head leaves, and ends what stays open (mission N4)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable

from coatcheck.drivers.watching import WatchedConnection
from coatcheck.errors import SessionDataError, SessionUnavailable
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.sessions.answer import SWITCHING_PROTOCOLS, Answer
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.mapping import replace
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.requests import FAILED
from coatcheck.web.holding import HOLDING_KEY
from coatcheck.web.interface import Header, Message, Middleware, Receive, Scope, Send
from coatcheck.web.open_stream import OpenStream, has_length
from coatcheck.web.open_websocket import POLICY_VIOLATION, SCOPE_KEY, TRY_AGAIN_LATER, OpenWebSocket
from coatcheck.web.replaced import ABSENT, content_of, other_layer

NO_HEADERS: tuple[Header, ...] = ()


class ResponseSender:
    """One answer on its way out: saves the session before the head leaves."""

    # Class attributes are the defaults: most answers leave in one piece.
    _streaming = False
    _replaced = False
    _headers: Iterable[Header] = NO_HEADERS
    _stream: OpenStream | None = None
    _websocket: OpenWebSocket | None = None
    _watch: WatchedConnection | None = None
    _ending: asyncio.Task[None] | None = None

    def __init__(self, middleware: Middleware, opened: Opened, scope: Scope, send: Send) -> None:
        self._middleware = middleware
        self._opened = opened
        self._scope = scope
        self._send = send

    @property
    def was_ended(self) -> bool:
        """Whether its session ended while it was open, so that the web server ended it."""
        return self._ending is not None

    def finish(self) -> None:
        """The app is done: nobody need be told any more when the session ends."""
        if self._watch is not None:
            self._opened.home.watching.forget(self._watch)
            self._watch = None

    def send(self, message: Message) -> Awaitable[None]:
        """What needs no waiting is passed straight on, without a coroutine of our own."""
        if message["type"] == "http.response.start" and not self._replaced:
            opened = self._opened
            status = message["status"]
            if self._scope.get("session", ABSENT) is not opened.session:
                self._adopt_unless_failed(status)
            headers = message.get("headers", NO_HEADERS)
            self._headers = headers if type(headers) is list else list(headers)  # ASGI allows one that is read once
            answer = opened.home.requests.finish(opened, status, self._headers)
            if type(answer) is not Answer:
                return self._start(message, answer)
            if answer.refused:
                return self._replace(answer)
            message["headers"] = answer.headers
            return self._send(message)
        if self._streaming or self._replaced or message.get("more_body"):
            return self._continue(message)
        return self._send(message)

    def _adopt_unless_failed(self, status: int) -> None:
        if status != FAILED:
            self._adopt()
        elif not self._opened.session._request.closing:
            self._opened.failed = True

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
            self._opened.failed = True  # the app's own error page may pass, without a session
            raise
        replace(self._opened.session, content)

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
        opened = self._opened
        return opened.key is not None and not opened.closed and opened.home.ends_streams

    def _watch_session(self) -> None:
        assert self._opened.key is not None
        self._watch = self._opened.home.watching.watch(self._opened.key, self._end)

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

    async def _start(self, message: Message, finishing: Flow[Answer] | Exclusive) -> None:
        opened = self._opened
        try:
            answer = await opened.home.run_for(opened, finishing)
        except SessionUnavailable as unavailable:
            answer = opened.home.requests.refuse(opened, unavailable)
        if answer.refused:
            await self._replace(answer)
            return
        message["headers"] = answer.headers
        await self._send(message)

    async def _save_late(self) -> None:
        """Changes made while the body was streamed: stored before the last piece leaves."""
        opened = self._opened
        if self._scope.get("session", ABSENT) is not opened.session and not opened.failed:
            self._adopt()
        await opened.home.end(opened)

    async def _replace(self, answer: Answer) -> None:
        """What the app answered is not true: its change was not stored."""
        self._replaced = True
        await self._middleware.refuse(self._scope, self._send, answer, "session not saved")

    def stand_between(self, receive: Receive) -> Receive:
        """Where the web server is to end a WebSocket itself, something must stand between it and the app."""
        if not self._opened.home.ends_streams:
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
        opened = self._opened
        if self._scope.get("session", ABSENT) is not opened.session:
            self._adopt()
        answer = await opened.home.finish(opened, SWITCHING_PROTOCOLS)
        if answer.refused:
            await self._replace(answer)  # the app finds its connection closed when it next receives
            return
        holding = self._scope.get(HOLDING_KEY)
        added = [*answer.cookies, *(holding.header() if holding is not None else ())]
        if added:
            message["headers"] = [*message.get("headers", ()), *added]
        await self._send(message)
        if self._may_watch():
            self._watch_session()
