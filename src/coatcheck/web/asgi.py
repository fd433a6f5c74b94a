"""ASGI middleware: where requests enter (mission A12, B1; issue "Web").

``scope["session"]`` is a dict that behaves as Starlette's. The response waits until what the request
did is acknowledged; a cookie is set only when the browser must learn something new.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Iterable
from typing import get_args

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.visit import LOST, VISIT
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import (
    CoatcheckError,
    ConfigError,
    SessionUnavailable,
)
from coatcheck.events import Event, EventKind
from coatcheck.sessions.lifecycle import Saved
from coatcheck.sessions.mapping import Session
from coatcheck.tokens.sealed import SealedToken
from coatcheck.web.cookies import CookieJar, CookiePolicy
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.interface import ASGIApp, Header, Message, Receive, Scope, Send
from coatcheck.web.open_websocket import is_caused_by_hang_up
from coatcheck.web.replaced import MAX_LAYERS_NAMED
from coatcheck.web.response import Response
from coatcheck.web.routes import Sticky, may_carry_route

NO_TOKENS: list[tuple[SealedToken, bool]] = []
RETRY_AFTER_S = 1


class SessionMiddleware:
    """Wraps an ASGI app, unmodified, with sessions that outlive any server.

    ``sessions`` is opened at lifespan startup, or with the first request where the server has no lifespan.
    ``cookies``: ``Secure`` and ``__Host-`` if you say nothing, but for sessions in memory. ``route_tag`` names this
    web server to the local director; ``sticky`` says which browsers are told it: all, or those with a session.
    ``error_pages``: what the middleware's own answers (503, 409) look like: pages by name
    (:class:`coatcheck.ErrorPages`), or a function of scope, status and detail.

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
    ) -> None:
        _check_arguments(app, sessions, cookies, error_pages, sticky)
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
                session._request.lost = scope.get(LOST) if session.is_new else None
            except SessionUnavailable as unavailable:
                await self.refuse(scope, send, 503, f"session unavailable: {unavailable.reason.value}")
                return
        scope["session"] = session
        session._request.ended_by = sessions.ended
        response = Response(self, sessions, scope, session, header, send)
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
            # Of what was unheard, only the cookie that was shown: a login that was faster than this answer stays.
            if session._request.login or (session._request.unheard and self._login.read(header)):
                headers.append(self._login.delete_cookie())
            if not session._request.login or session._request.unheard:
                headers.append(self._anonymous.delete_cookie())
        elif saved.issue is not None:
            jar = self._login if saved.issue.login else self._anonymous
            headers.append(jar.set_cookie(self.sessions.seal(saved.issue), session.remember))
            if saved.issue.login and self._anonymous.read(header):
                headers.append(self._anonymous.delete_cookie())
        if session._request.copy_held is not None and self._lacks_route(header):
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


def _check_arguments(app: object, sessions: object, cookies: object, error_pages: object, sticky: object) -> None:
    """Raises :class:`ConfigError` for the first one of the wrong kind: else it would fail with a visitor's request."""
    name = "SessionMiddleware"
    if not callable(app):
        raise ConfigError(f"{name}: app: an ASGI app, not {type(app).__name__}")
    if not isinstance(sessions, Sessions):
        raise ConfigError(f"{name}: sessions: what connect(...) returns, not {type(sessions).__name__}")
    if cookies is not None and not isinstance(cookies, CookiePolicy):
        raise ConfigError(f"{name}: cookies: a CookiePolicy, not {type(cookies).__name__}")
    if error_pages is not None and not isinstance(error_pages, ErrorPages) and not callable(error_pages):
        raise ConfigError(f"{name}: error_pages: ErrorPages or a function, not {type(error_pages).__name__}")
    if sticky not in get_args(Sticky):
        raise ConfigError(f"{name}: sticky: choose one of {', '.join(get_args(Sticky))}")


async def _open(sessions: Sessions, tokens: list[tuple[SealedToken, bool]]) -> Session:
    """The session of the first token that opens one, else a fresh one."""
    unheard: tuple[bytes, ...] = ()
    for token, login in tokens:
        session = sessions.open_cached(token, login) or await sessions.open_session(token, login)
        if session is None:
            continue
        if not session._request.unheard:
            session._request.unheard = unheard
            return session
        unheard += session._request.unheard
    session = Session()
    session._request.unheard = unheard
    return session


__all__ = ["SessionMiddleware"]
