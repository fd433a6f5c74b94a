"""aiohttp: ``setup(app, connect(...))``, and ``request["session"]`` is the session.

``aiohttp_session.get_session(request)`` returns a view of the same session where that package is installed. Its own
``AbstractStorage`` is not used: it stores nothing in streams and WebSockets, and does not see nested changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from aiohttp import WSCloseCode, web

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.watching import WatchedConnection
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import ConfigError, SessionUnavailable
from coatcheck.sessions.answer import Answer
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.routes import Sticky
from coatcheck.web.arguments import check_arguments, check_for_loops
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.open_stream import has_length

KEY: Final = "session"
"""Where a handler finds its session in ``request``."""
_VISIT: Final = "coatcheck.visit"
_OF_AIOHTTP_SESSION: Final = ("aiohttp_session", "aiohttp_session_storage")
"""Where ``aiohttp_session`` looks for its session, and for what makes a new one."""


def setup(
    app: web.Application,
    sessions: Sessions,
    cookies: CookiePolicy | None = None,
    route_tag: str | None = None,
    error_pages: ErrorPages | ErrorPage | None = None,
    sticky: Sticky = "browser",
) -> None:
    """Give every request of ``app`` and of its sub-apps a session. The arguments are those of
    :class:`coatcheck.SessionMiddleware`; of ``error_pages`` a function gets ``type``, ``method``, ``path`` and
    ``headers`` as a scope of ASGI. Call it before the app runs; its middleware becomes the outermost.

    Raises :class:`coatcheck.ConfigError` for an argument of the wrong kind.
    """
    if not isinstance(app, web.Application):
        raise ConfigError(f"setup: app: an aiohttp.web.Application, not {type(app).__name__}")
    check_for_loops(sessions, cookies)
    check_arguments(setup, "an aiohttp app", cookies, error_pages, sticky)
    layer = _Layer(sessions, cookies or sessions.cookies, route_tag, error_pages, sticky)

    @web.middleware
    async def with_session(request: web.Request, handler: Any) -> web.StreamResponse:
        return await layer.handle(request, handler)

    app.middlewares.insert(0, with_session)
    app.on_response_prepare.append(layer.prepare)
    app.cleanup_ctx.insert(0, layer.live)


class _NotStored(Exception):
    """In place of the app's response, whose change was not stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.refused)
        self.answer = answer


class _OpenVisit:
    """One request: its session, and what is open because of it."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.is_finished = False
        self.is_ended = False
        self.watch: WatchedConnection | None = None
        self.ending: asyncio.Task[None] | None = None


class _Layer:
    """The sessions of one app."""

    def __init__(
        self,
        sessions: Sessions,
        cookies: CookiePolicy,
        route_tag: str | None,
        error_pages: ErrorPages | ErrorPage | None,
        sticky: Sticky,
    ) -> None:
        self._sessions = sessions
        self._transport = sessions.transport_of(cookies, route_tag, sticky)
        self._error_pages = error_pages
        self._view = _view_of_aiohttp_session()

    async def live(self, app: web.Application) -> AsyncIterator[None]:
        """From the app's start-up to its clean-up."""
        home = await self._sessions.on_this_loop()
        yield
        await home.aclose()

    async def handle(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if _VISIT in request:
            found: web.StreamResponse = await handler(request)  # set up twice: the outer one has it
            return found
        try:
            opened = await self._sessions.open(
                b"; ".join(value for name, value in request.raw_headers if name.lower() == b"cookie"),
                request.remote,
                self._transport,
                request.method,
                [(name.lower(), value) for name, value in request.raw_headers],
            )
        except SessionUnavailable as unavailable:
            return self._refusal(request, Answer.refusal(unavailable), "session unavailable")
        visit = _OpenVisit(opened)
        kept = {_VISIT: visit, KEY: opened.session}
        if self._view is not None:
            kept |= dict.fromkeys(_OF_AIOHTTP_SESSION, self._view(opened.session))
        request._state.update(kept)  # request[...] = warns of keys that are text, which those of aiohttp_session are
        try:
            raised: web.HTTPException | None = None
            try:
                response: web.StreamResponse = await handler(request)
            except web.HTTPException as error:
                response = raised = error
            with contextlib.suppress(ConnectionError):  # the client has left
                await response.prepare(request)
                await self._end(visit)
        except _NotStored as refused:
            return self._refusal(request, refused.answer, "session not saved")
        finally:
            if visit.watch is not None:
                opened.home.watching.forget(visit.watch)
        if raised is not None:
            raise raised
        return response

    async def prepare(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Before the head leaves, whoever lets it leave."""
        visit: _OpenVisit | None = request.get(_VISIT)
        if visit is None or visit.is_finished:
            return
        visit.is_finished = True
        raw = [(name.encode("latin-1"), value.encode("utf-8")) for name, value in response.headers.items()]
        try:
            answer = await visit.opened.home.finish(visit.opened, response.status, raw)
            if answer.refused:
                raise _NotStored(answer)
        except BaseException:
            _forget_framing(request)  # another response takes its place
            raise
        if answer.headers is not raw:
            response.headers.clear()
            for name, value in answer.headers:
                response.headers.add(name.decode("latin-1"), value.decode("utf-8"))
        self._stay_with(visit, request, response, raw)

    def _stay_with(
        self,
        visit: _OpenVisit,
        request: web.BaseRequest,
        response: web.StreamResponse,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        """What is streamed stores what comes later, and what stays open ends with its session."""
        is_websocket = isinstance(response, web.WebSocketResponse)
        if isinstance(response, web.Response) or (not is_websocket and has_length(headers)):
            return
        if not is_websocket:
            leave = response.write_eof

            async def write_eof(data: bytes = b"") -> None:
                await self._end(visit)
                await leave(data)

            response.write_eof = write_eof  # type: ignore[method-assign]
        opened = visit.opened
        if opened.key is None or opened.closed or not opened.home.ends_streams:
            return

        def over(end: SessionEnd) -> None:
            visit.watch = None
            visit.ending = asyncio.get_running_loop().create_task(_hang_up(request, response, end))

        visit.watch = opened.home.watching.watch(opened.key, over)

    async def _end(self, visit: _OpenVisit) -> None:
        if visit.is_finished and not visit.is_ended:
            visit.is_ended = True
            await visit.opened.home.end(visit.opened)

    def _refusal(self, request: web.BaseRequest, answer: Answer, what: str) -> web.Response:
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        scope = {"type": "http", "method": request.method, "path": request.path, "headers": headers}
        page = page_for(self._error_pages, scope, answer.status, f"{what}: {answer.refused}")
        response = web.Response(status=answer.status, body=page.body)
        for name, value in [*page.headers, *answer.headers]:
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        return response


async def _hang_up(request: web.BaseRequest, response: web.StreamResponse, end: SessionEnd) -> None:
    """The session is over: a WebSocket is closed as ASGI's is; a stream gets its last piece, and its handler ends."""
    with contextlib.suppress(ConnectionError, RuntimeError):  # the client was faster
        if isinstance(response, web.WebSocketResponse):
            away = end is SessionEnd.UNKNOWN
            code = WSCloseCode.TRY_AGAIN_LATER if away else WSCloseCode.POLICY_VIOLATION
            await response.close(code=code, message=f"session {end.value}".encode())
        else:
            await response.write_eof()
            request.task.cancel()


def _forget_framing(request: web.BaseRequest) -> None:
    """What the response that may not leave has said of its body; of its head nothing has left."""
    writer: Any = request._payload_writer
    writer.chunked, writer.length, writer._compress = False, None, None


def _view_of_aiohttp_session() -> Any:
    """A class of ``aiohttp_session``'s own kind, over a session of ours; ``None``: nobody has that package."""
    try:
        import aiohttp_session
    except ImportError:
        return None

    class AiohttpSessionView(aiohttp_session.Session):
        """Also stands where a storage is looked for: :meth:`new_session` is what is asked of it."""

        def __init__(self, session: Session) -> None:
            super().__init__(None, data=None, new=session.is_new)
            self._mapping = session
            self._session = session

        def changed(self) -> None:
            self._session.mark_modified()

        def invalidate(self) -> None:
            self._session.clear()

        async def new_session(self) -> AiohttpSessionView:
            """As for a login: what was there is over, and a session of another key begins."""
            self._session.close()
            self._session.regenerate()
            return self

    return AiohttpSessionView
