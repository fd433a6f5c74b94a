"""Quart's sessions (``app.session_interface``), kept on the session servers: Flask's, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from datetime import date
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from quart.sessions import SessionInterface as QuartSessionInterface
from quart.wrappers.response import IterableBody, ResponseBody

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import SessionUnavailable
from coatcheck.sessions.answer import SWITCHING_PROTOCOLS, Answer
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Phase
from coatcheck.web.arguments import check_for_loops
from coatcheck.web.flask_headers import adopt, headers_of
from coatcheck.web.flask_interface import CommonInterface, headers_shown
from coatcheck.web.flask_session import FrameworkSession, UnavailableSession, refusal_of
from coatcheck.web.moving_in import Former

if TYPE_CHECKING:
    from flask.sessions import SessionMixin
    from quart import Quart

UNHEARD_IN_A_WEBSOCKET = (
    "a session cannot begin, nor be regenerated, in a WebSocket: its browser cannot be given the cookie; what was "
    "changed is not stored"
)


class SessionInterface(CommonInterface, QuartSessionInterface):
    """``app.session_interface = SessionInterface(connect(...))``.

    Without ``sessions`` it takes the session that coatcheck's middleware has opened outside of the app, which then
    also names and writes the cookie. The sessions are closed after the app has served.

    ``former``: readers of the sessions of before (:mod:`coatcheck.web.moving_in`), each of which continues here at its
    browser's first visit before ``until``. They are asked in a thread.

    Raises :class:`coatcheck.ConfigError` for arguments of the wrong kind.
    """

    def __init__(
        self, sessions: Sessions | None = None, former: Sequence[Former] = (), until: date | None = None
    ) -> None:
        if sessions is not None:
            check_for_loops(sessions, None, "SessionInterface")
        super().__init__(sessions, former, until)
        self.sessions = sessions
        self._closed_after: WeakSet[Quart] = WeakSet()

    # -- open ----------------------------------------------------------------------------------------

    async def open_session(self, app: Quart, request: Any) -> SessionMixin | None:
        """The session of a request or a WebSocket; ``None`` if nobody keeps sessions."""
        outside = request.scope.get("session")
        if isinstance(outside, Session):
            session = self.wrap(app, outside)
        elif self.sessions is None:
            return None
        else:
            if app not in self._closed_after:
                self._closed_after.add(app)
                app.after_serving_funcs.append(self._close)
            try:
                session = await self._open(request, self.sessions, self.shown_by(app, request))
                if session.has_outlived(app.permanent_session_lifetime):
                    session = await self._open(request, self.sessions, b"")
            except SessionUnavailable as unavailable:
                return UnavailableSession(Answer.refusal(unavailable))
        if session.is_new and not self.moving_in.is_over():
            try:
                found = await asyncio.to_thread(self.find_former, session, request)
            except SessionUnavailable as unavailable:
                return UnavailableSession(Answer.refusal(unavailable))
            if found is not None:
                session.move_in(found, self.serializer)
        return session

    async def _open(self, request: Any, sessions: Sessions, shown: bytes) -> FrameworkSession:
        method = getattr(request, "method", "GET")
        client = request.scope.get("client")
        opened = await sessions.open(
            shown, client[0] if client else None, self._transport, method, headers_shown(request)
        )
        return self.session_of(opened)

    async def _close(self) -> None:
        if self.sessions is not None:
            await self.sessions.here().aclose()

    # -- save ----------------------------------------------------------------------------------------

    async def save_session(self, app: Quart, session: SessionMixin, response: Any) -> None:
        """Store what the request did, and write its cookie; a response that may not leave becomes the refusal.

        ``response``: ``None`` after a WebSocket.
        """
        if isinstance(session, UnavailableSession):
            if response is None or not session.was_asked:
                return
            if session.is_said_by(response.status_code):
                adopt(response, (), session.answer.headers)
            else:
                await self._refuse(app, response, session.answer)
        elif isinstance(session, FrameworkSession):
            if session._opened is None:
                self._hand_outside(app, session, response)
            elif session._opened.phase is not Phase.OPEN:
                return
            elif response is None:
                await self._save_after_a_websocket(app, session)
            else:
                await self._save(app, session, response)

    def _hand_outside(self, app: Quart, session: FrameworkSession, response: Any) -> None:
        self.hand_outside(app, session, response)
        if response is not None and isinstance(response.response, IterableBody):

            async def end() -> None:
                session.hand_over(self.serializer)

            response.response = _Body(response.response, end, False)

    async def _save(self, app: Quart, session: FrameworkSession, response: Any) -> None:
        sessions, opened = self.sessions, session._opened
        assert sessions is not None
        assert opened is not None
        forget = self.settle(app, session, response)
        streamed = isinstance(response.response, IterableBody)
        given = headers_of(response, streamed)
        answer = await sessions.finish(opened, response.status_code, given)
        if answer.refused:
            await self._refuse(app, response, answer)
            return
        self.conclude(app, session, response, given, answer, forget)
        if session._found is not None:
            await asyncio.to_thread(session._found.leave)
        if streamed:

            async def end() -> None:
                session.hand_over(self.serializer)
                await sessions.end(opened)

            response.response = _Body(response.response, end, "Content-Length" in response.headers)

    async def _save_after_a_websocket(self, app: Quart, session: FrameworkSession) -> None:
        """Its head has left long ago: what needs no cookie is stored."""
        assert self.sessions is not None
        assert session._opened is not None
        request = session._request
        if session.is_new or request.new_login:
            if session.modified and session._found is None:
                app.logger.error(UNHEARD_IN_A_WEBSOCKET)
            return
        session.leave_if_emptied()
        request.is_open = True
        session.hand_over(self.serializer)
        answer = await self.sessions.finish(session._opened, SWITCHING_PROTOCOLS)
        if answer.refused:
            app.logger.error("what a WebSocket changed in its session was not stored: %s", answer.refused)

    async def _refuse(self, app: Quart, response: Any, answer: Answer) -> None:
        """What the app answered is not true. Its own error page is shown instead, if it has one."""
        error = refusal_of(answer)
        try:
            page = await app.make_response(await app.handle_user_exception(error))
        except Exception:
            app.logger.exception("the error page of a refused session failed")
            page = await app.make_response(error)
        found = page.get_data()
        response.set_data(await found if isinstance(found, Awaitable) else found)
        response.status_code = answer.status
        length = response.headers["Content-Length"]
        response.headers.clear()
        response.headers.extend(page.headers)
        response.headers["Content-Length"] = length
        adopt(response, (), answer.headers)


class _Body(ResponseBody):
    """A streamed body; what was changed meanwhile is stored before its client can know that it is complete: where the
    response says its length its last piece is held back for that."""

    def __init__(self, body: ResponseBody, end: Callable[[], Awaitable[None]], has_length: bool) -> None:
        self._body = body
        self._end = end
        self._has_length = has_length
        self._pieces: AsyncIterable[Any] | None = None

    async def __aenter__(self) -> AsyncIterable[Any]:
        self._pieces = await self._body.__aenter__()
        return self._iterate(self._pieces)

    async def _iterate(self, pieces: AsyncIterable[Any]) -> AsyncIterator[Any]:
        held: list[Any] = []
        async for piece in pieces:
            if self._has_length:
                held.append(piece)
                if len(held) > 1:
                    yield held.pop(0)
            else:
                yield piece
        await self._end()
        for piece in held:
            yield piece

    async def __aexit__(self, exc_type: type, exc_value: BaseException, tb: TracebackType) -> None:
        await self._body.__aexit__(exc_type, exc_value, tb)


__all__ = ["SessionInterface"]
