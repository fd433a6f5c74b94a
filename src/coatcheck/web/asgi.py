"""ASGI middleware: where requests enter (mission A12, B1; issue "Web").

``scope["session"]`` is a dict that behaves as Starlette's. The response waits until what the request
did is acknowledged; a cookie is set only when the browser must learn something new.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.visit import LOST, VISIT
from coatcheck.drivers.watching import Watch
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import (
    CoatcheckError,
    ConflictError,
    SessionClosed,
    SessionDataError,
    SessionUnavailable,
    UnavailableReason,
)
from coatcheck.events import Event, EventKind
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.lifecycle import Saved
from coatcheck.sessions.mapping import Session
from coatcheck.tokens.sealed import SealedToken
from coatcheck.web.cookies import CookieJar, CookiePolicy
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.open_stream import OpenStream, has_length, may_read_later
from coatcheck.web.open_websocket import POLICY_VIOLATION, SCOPE_KEY, OpenWebSocket, is_caused_by_hang_up
from coatcheck.web.replaced import ABSENT, MAX_LAYERS_NAMED, content_of, other_layer
from coatcheck.web.routes import Sticky, may_carry_route, with_route

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

NOTHING = Saved()
NO_HEADERS: tuple[Header, ...] = ()
NO_TOKENS: list[tuple[SealedToken, bool]] = []
RETRY_AFTER_S = 1
TRY_AGAIN_LATER = 1013
"""The close code of a WebSocket whose session cannot be had just now (IANA registry of RFC 6455)."""
TOO_LATE = (
    "a session cannot be begun or regenerated while the response is streamed: its head has left, and the browser "
    "cannot be given the cookie any more; do it before the response starts"
)
UNCACHED = ((b"vary", b"Cookie"), (b"cache-control", b"no-store"))
_GUARDED_LENGTHS = frozenset(len(name) for name, _ in UNCACHED)


class SessionMiddleware:
    """Wraps an ASGI app, unmodified, with sessions that outlive any server.

    ``sessions`` is opened at lifespan startup, or with the first request where the server has no lifespan.
    ``cookies``: ``Secure`` and ``__Host-`` if you say nothing, but for sessions in memory. ``route_tag`` names this
    web server to the local director; ``sticky`` says which browsers are told it: all, or those with a session.
    ``error_pages``: what the middleware's own answers (503, 409) look like: pages by name
    (:class:`coatcheck.ErrorPages`), or a function of scope, status and detail.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        cookies: CookiePolicy | None = None,
        route_tag: str | None = None,
        error_pages: ErrorPages | ErrorPage | None = None,
        sticky: Sticky = "browser",
    ) -> None:
        # Sessions in memory are for tests, and test clients speak plain HTTP.
        cookies = cookies or CookiePolicy(insecure_localhost=sessions.in_memory)
        self.app = app
        self.sessions = sessions
        self.requests = 0
        self._error_pages = error_pages
        absolute_timeout_s = sessions.lifecycle.policy.absolute_timeout_ms / 1000
        cookies.check_lifetime(absolute_timeout_s)
        self._anonymous = CookieJar(cookies)
        self._login = CookieJar(cookies, "-login", absolute_timeout_s)
        self._route = CookieJar(cookies.for_whole_host(), "-route")
        self._login_name = self._login.name
        self._read_anonymous = self._anonymous.read
        self._read_route = self._route.read
        self._layers_named: set[str] = set()
        self._route_tag = route_tag.encode() if route_tag is not None else None
        self._route_shown = b"; %b=%b" % (self._route.name, self._route_tag or b"")
        """How the header ends if the browser has our route cookie: it was given last. A look instead of a search."""
        self._route_cookie = self._route.set_cookie(self._route_tag or b"")
        self._routes_all = sticky == "browser"
        self._unseal = sessions.unseal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        self.requests += 1
        VISIT.set(scope)
        sessions = self.sessions
        if sessions.loop is not get_running_loop():
            sessions = await sessions.on_this_loop()
        header = b""
        for name, value in scope["headers"]:
            if name == b"cookie":
                header = header + b"; " + value if header else value
        tokens = self._tokens(header) if header else NO_TOKENS
        session = sessions.open_cached(*tokens[0]) if tokens else Session()
        if session is None:
            try:
                session = await _open(sessions, tokens)
                session.lost = scope.get(LOST) if session.is_new else None
            except SessionUnavailable as unavailable:
                await self.refuse(scope, send, 503, f"session unavailable: {unavailable.reason.value}")
                return
        scope["session"] = session
        session.ended_by = sessions.ended
        response = _Response(self, sessions, scope, session, header, send)
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

    def _tokens(self, header: bytes) -> list[tuple[SealedToken, bool]]:
        """The tokens that the browser shows and that are ours, with whether it is the logged-in cookie's, which is
        first."""
        text = self._read_anonymous(header)
        token = self._unseal(text, False) if text else None
        tokens = [(token, False)] if token is not None else NO_TOKENS
        if self._login_name in header:
            text = self._login.read(header)
            token = self._unseal(text, True) if text else None
            if token is not None:
                return [(token, True), *tokens]
        return tokens

    def cookies_for(self, session: Session, saved: Saved, header: bytes) -> list[Header]:
        """The Set-Cookie headers that this answer needs; none if the browser knows everything."""
        headers: list[Header] = []
        if saved.clear:
            if session.login or session.unheard:
                headers.append(self._login.delete_cookie())
            if not session.login or session.unheard:
                headers.append(self._anonymous.delete_cookie())
        elif saved.issue is not None:
            jar = self._login if saved.issue.login else self._anonymous
            headers.append(jar.set_cookie(self.sessions.seal(saved.issue), session.remember))
            if saved.issue.login and self._anonymous.read(header):
                headers.append(self._anonymous.delete_cookie())
        if session.copy_held is not None and self._lacks_route(header):
            headers.append(self._route_cookie)
        return headers

    def _lacks_route(self, header: bytes) -> bool:
        if self._route_tag is None:
            return False
        return not header.endswith(self._route_shown) and self._read_route(header) != self._route_tag

    def route_for(self, status: int, headers: Iterable[Header], header: bytes) -> Header | None:
        """The Set-Cookie header that gives a browser without a session its route, if this answer may carry one."""
        wanted = self._routes_all and self._lacks_route(header) and may_carry_route(status, headers)
        return self._route_cookie if wanted else None

    def name_layer(self, layer: str) -> None:
        """Warn, once for each: what the app does to ``scope["session"]`` there does not reach our session."""
        if layer not in self._layers_named and len(self._layers_named) < MAX_LAYERS_NAMED:
            self._layers_named.add(layer)
            detail = f"{layer} keeps sessions of its own inside the app: there, ours is out of sight and left as it was"
            self.sessions.report(Event(EventKind.SESSION_HIDDEN, detail=detail))

    async def refuse(self, scope: Scope, send: Send, status: int, why: str) -> None:
        """Fail closed, in one line of text that says nothing secret, or as the app wants it shown."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1013, "reason": "session unavailable"})
            return
        page = page_for(self._error_pages, scope, status, why)
        headers = [*page.headers, (b"content-length", b"%d" % len(page.body)), (b"cache-control", b"no-store")]
        if status in (503, 429):
            headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
        await send({"type": "http.response.start", "status": status, "headers": headers})
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


async def _open(sessions: Sessions, tokens: list[tuple[SealedToken, bool]]) -> Session:
    """The session of the first token that opens one, else a fresh one."""
    unheard: tuple[bytes, ...] = ()
    for token, login in tokens:
        session = sessions.open_cached(token, login) or await sessions.open_session(token, login)
        if session is None:
            continue
        if not session.unheard:
            session.unheard = unheard
            return session
        unheard += session.unheard
    session = Session()
    session.unheard = unheard
    return session


class _Response:
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
        elif not self._session.closing:
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
        self._session.replace(content)

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
        return self._session.copy_held is not None and not self._closed and self._sessions.ends_streams

    def _watch_session(self) -> None:
        assert self._session.copy_held is not None
        self._watch = self._sessions.watching.watch(self._session.copy_held.key, self._end)

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
        if message["status"] == 500 and not self._session.closing:
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
            headers = message["headers"] = _guard(self._headers, cookies)
            if session.copy_held is None and (route := middleware.route_for(message["status"], headers, self._header)):
                headers.append(route)
        elif session.copy_held is None and (
            route := middleware.route_for(message["status"], self._headers, self._header)
        ):
            message["headers"] = with_route(self._headers, route)
        return message

    async def _save(self) -> Saved:
        session = self._session
        sessions = self._sessions
        try:
            if sessions.needs_save(session):
                if session.copy_held is None:
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
            if session.is_new or session.new_login:
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
        if self._session.copy_held is None and (route := self._middleware.route_for(101, NO_HEADERS, self._header)):
            cookies.append(route)
        if cookies:
            message["headers"] = [*message.get("headers", ()), *cookies]
        await self._send(message)
        if self._may_watch():
            self._watch_session()


def _guard(headers: Iterable[Header], cookies: list[Header]) -> list[Header]:
    """``Vary: Cookie`` and ``no-store`` (ASVS 14.2.2). The app's own Cache-Control stands unless a token leaves."""
    guarded = list(headers)
    for name, _ in guarded:
        if len(name) in _GUARDED_LENGTHS:
            return _guard_beside(guarded, bool(cookies)) + cookies
    guarded += UNCACHED
    guarded += cookies
    return guarded


def _guard_beside(headers: list[Header], sets_cookie: bool) -> list[Header]:
    """The same for headers of which one may be ``Vary`` or ``Cache-Control``."""
    guarded: list[Header] = []
    wanted = dict(UNCACHED)
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"cache-control" and sets_cookie:
            continue
        if lowered == b"cache-control" or (
            lowered == b"vary" and (b"cookie" in value.lower() or value.strip() == b"*")
        ):
            wanted.pop(lowered, None)
        guarded.append((name, value))
    return guarded + list(wanted.items())


__all__ = ["SessionMiddleware"]
