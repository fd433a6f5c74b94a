"""Flask's sessions (``app.session_interface``), kept on the session servers.

Flask's own settings and methods say what the cookie is called and how long the browser keeps it; coatcheck says what
stands in it, what is stored, and when a response may not leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from flask.sessions import SessionInterface as FlaskSessionInterface

from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import SessionUnavailable
from coatcheck.sessions.answer import Answer
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Phase
from coatcheck.web.arguments import check_for_threads
from coatcheck.web.flask_headers import adopt, headers_of
from coatcheck.web.flask_interface import CommonInterface, headers_shown
from coatcheck.web.flask_logins import follow_logins
from coatcheck.web.flask_session import FrameworkSession, UnavailableSession, refusal_of
from coatcheck.web.moving_in import Former
from coatcheck.web.wsgi import KEY

if TYPE_CHECKING:
    from flask import Flask, Request, Response
    from flask.sessions import SessionMixin
    from werkzeug.exceptions import HTTPException


class SessionInterface(CommonInterface, FlaskSessionInterface):
    """``app.session_interface = SessionInterface(connect(..., driver="threads"))``.

    Without ``sessions`` it takes the session that coatcheck's middleware has opened outside of the app, which then
    also names and writes the cookie. An app needs no ``SECRET_KEY`` for it.

    ``former``: readers of the sessions of before (:mod:`coatcheck.web.moving_in`), each of which continues here at its
    browser's first visit before ``until``.

    Raises :class:`coatcheck.ConfigError` for arguments of the wrong kind.
    """

    def __init__(
        self, sessions: ThreadedSessions | None = None, former: Sequence[Former] = (), until: date | None = None
    ) -> None:
        if sessions is not None:
            check_for_threads(sessions, "SessionInterface", "a Flask app")
        super().__init__(sessions, former, until)
        self.sessions = sessions
        self._followed: WeakSet[Flask] = WeakSet()
        """The apps with a login manager whose logins are followed."""

    # -- open ----------------------------------------------------------------------------------------

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """The session of a request; ``None`` if nobody keeps sessions."""
        if getattr(app, "login_manager", None) is not None and app not in self._followed:
            follow_logins(app)
            self._followed.add(app)
        outside = request.environ.get(KEY)
        if isinstance(outside, Session):
            session = self.wrap(app, outside)
        elif self.sessions is None:
            return None
        else:
            try:
                session = self._open(request, self.sessions, self.shown_by(app, request))
                if session.has_outlived(app.permanent_session_lifetime):
                    session = self._open(request, self.sessions, b"")
            except SessionUnavailable as unavailable:
                return UnavailableSession(Answer.refusal(unavailable))
        try:
            found = self.find_former(session, request)
        except SessionUnavailable as unavailable:
            return UnavailableSession(Answer.refusal(unavailable))
        if found is not None:
            session.move_in(found, self.serializer)
        return session

    def _open(self, request: Request, sessions: ThreadedSessions, shown: bytes) -> FrameworkSession:
        return self.session_of(
            sessions.open(shown, request.remote_addr, self._transport, request.method, headers_shown(request))
        )

    # -- save ----------------------------------------------------------------------------------------

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Store what the request did, and write its cookie; a response that may not leave becomes the refusal."""
        if isinstance(session, UnavailableSession):
            if session.was_asked and not session.is_said_by(response.status_code):
                self._refuse(app, response, session.answer)
            elif session.was_asked:
                adopt(response, (), session.answer.headers)
        elif isinstance(session, FrameworkSession):
            if session._opened is None:
                self.hand_outside(app, session, response)
                if is_streamed(response):
                    response.response = _Body(response.response, lambda: session.hand_over(self.serializer), False)
            elif session._opened.phase is Phase.OPEN:
                self._save(app, session, response)

    def _save(self, app: Flask, session: FrameworkSession, response: Response) -> None:
        sessions, opened = self.sessions, session._opened
        assert sessions is not None
        assert opened is not None
        forget = self.settle(app, session, response)
        streamed = is_streamed(response)
        given = headers_of(response, streamed)
        answer = sessions.finish(opened, response.status_code, given)
        if answer.refused:
            self._refuse(app, response, answer)
            return
        self.conclude(app, session, response, given, answer, forget)
        if session._found is not None:
            session._found.leave()
        if streamed:

            def end() -> None:
                session.hand_over(self.serializer)
                sessions.end(opened)

            response.response = _Body(response.response, end, "Content-Length" in response.headers)

    def _refuse(self, app: Flask, response: Response, answer: Answer) -> None:
        """What the app answered is not true. Its own error page is shown instead, if it has one."""
        error = refusal_of(answer)
        try:
            page = app.make_response(_error_page(app, error))
        except Exception:
            app.logger.exception("the error page of a refused session failed")
            page = app.make_response(error)
        close = getattr(response.response, "close", None)
        if close is not None:
            close()
        response.response = page.response
        response.direct_passthrough = page.direct_passthrough
        response.status_code = answer.status
        response.headers.clear()
        response.headers.extend(page.headers)
        adopt(response, (), answer.headers)


def _error_page(app: Flask, error: HTTPException) -> Any:
    """What the app answers to an error; Flask 3.2 wants the context named."""
    handle: Any = app.handle_user_exception
    if len(signature(handle).parameters) == 1:
        return handle(error)
    from flask.globals import app_ctx

    return handle(app_ctx._get_current_object(), error)  # type: ignore[attr-defined]


def is_streamed(response: Response) -> bool:
    """Whether code of the app may run while the body leaves."""
    return response.is_streamed and not response.direct_passthrough


class _Body:
    """A streamed body; what was changed meanwhile is stored before its client can know that it is complete: where the
    response says its length its last piece is held back for that."""

    def __init__(self, body: Iterable[Any], end: Callable[[], None], has_length: bool) -> None:
        self._body = body
        self._end = end
        self._has_length = has_length

    def __iter__(self) -> Iterator[Any]:
        held: list[Any] = []
        for piece in self._body:
            if self._has_length:
                held.append(piece)
                if len(held) > 1:
                    yield held.pop(0)
            else:
                yield piece
        self._end()
        yield from held

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


__all__ = ["SessionInterface"]
