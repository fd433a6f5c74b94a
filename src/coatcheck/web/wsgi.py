"""WSGI middleware (PEP 3333): where requests enter that run in threads (mission B1).

``environ["coatcheck.session"]`` is the session, a dict that can be changed freely. The response waits until what the
request did is acknowledged; a cookie is set only when the browser must learn something new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final

from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import SessionUnavailable
from coatcheck.sessions.answer import Answer
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.routes import Header, Sticky
from coatcheck.web.arguments import check_arguments, check_for_threads
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.open_stream import has_length

KEY: Final = "coatcheck.session"
"""Where an app finds its session in ``environ``."""
SESSIONS_KEY: Final = "coatcheck.sessions"
"""Where it finds what it may ask more by: ``environ["coatcheck.sessions"].devices(session)``."""

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], object]
StartResponse = Callable[..., Write]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]
TextHeader = tuple[str, str]


class SessionMiddleware:
    """Wraps a WSGI app, unmodified, with sessions that outlive any server.

    ``sessions``: what ``connect(..., driver="threads")`` returns; build it anywhere, also before a fork. The other
    arguments are those of :class:`coatcheck.SessionMiddleware`; of ``error_pages`` a function gets ``environ`` as a
    scope of ASGI: ``type``, ``method``, ``path`` and ``headers``.

    Raises :class:`coatcheck.ConfigError` for an argument of the wrong kind.
    """

    def __init__(
        self,
        app: WSGIApp,
        sessions: ThreadedSessions,
        cookies: CookiePolicy | None = None,
        route_tag: str | None = None,
        error_pages: ErrorPages | ErrorPage | None = None,
        sticky: Sticky = "browser",
    ) -> None:
        check_for_threads(sessions)
        check_arguments(app, "a WSGI app", cookies, error_pages, sticky)
        self.app = app
        self.sessions = sessions
        self._error_pages = error_pages
        self._transport = sessions.transport_of(cookies or sessions.cookies, route_tag, sticky)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if KEY in environ:
            return self.app(environ, start_response)  # coatcheck serve, or another one around, has opened it
        try:
            opened = self.sessions.open(
                environ.get("HTTP_COOKIE", "").encode("latin-1"),
                environ.get("REMOTE_ADDR") or None,
                self._transport,
                environ["REQUEST_METHOD"],
                _shown_headers(environ),
            )
        except SessionUnavailable as unavailable:
            return self.refuse(environ, start_response, Answer.refusal(unavailable), "session unavailable")
        environ[KEY] = opened.session
        environ[SESSIONS_KEY] = self.sessions
        response = _Response(self, opened, environ, start_response)
        body = self.app(environ, response.start)
        if type(body) in (list, tuple) and response.was_started:
            # Nothing of the app runs while these leave; between its start and here it did.
            if response.instead is not None:
                return response.instead
            self.sessions.end(opened)
            return body
        return response.pieces(body)

    def refuse(
        self,
        environ: Environ,
        start_response: StartResponse,
        answer: Answer,
        what: str,
        exc_info: ExcInfo | None = None,
    ) -> list[bytes]:
        """Fail closed, in one line of text that says nothing secret, or as the app wants it shown."""
        page = page_for(self._error_pages, _scope_of(environ), answer.status, f"{what}: {answer.refused}")
        headers = [*page.headers, (b"content-length", b"%d" % len(page.body)), *answer.headers]
        start_response(_status_line(answer.status), _as_text(headers), *([exc_info] if exc_info else []))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [page.body]


class _Response:
    """One answer on its way out: the session is saved before its head leaves, and what came later before its end."""

    def __init__(
        self, middleware: SessionMiddleware, opened: Opened, environ: Environ, start_response: StartResponse
    ) -> None:
        self._middleware = middleware
        self._opened = opened
        self._environ = environ
        self._start_response = start_response
        self.was_started = False
        self._has_length = False
        self.instead: list[bytes] | None = None
        """The body of a refusal; what the app answered is not true, for its change was not stored."""

    def start(self, status: str, headers: list[TextHeader], exc_info: ExcInfo | None = None) -> Write:
        if self.instead is not None:
            return _drop
        if self.was_started:
            # The app fails behind its start: what it did is stored already. Who has sent the head raises its error.
            return (
                self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)
            )
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        answer = self._middleware.sessions.finish(self._opened, int(status[:3]), raw)
        self.was_started = True
        self._has_length = has_length(raw)
        if answer.refused:
            self.instead = self._middleware.refuse(
                self._environ, self._start_response, answer, "session not saved", exc_info
            )
            return _drop
        if answer.headers is not raw:
            headers = _as_text(answer.headers)
        return self._start_response(status, headers, exc_info) if exc_info else self._start_response(status, headers)

    def pieces(self, body: Iterable[bytes]) -> Iterator[bytes]:
        """The body; what was changed meanwhile is stored before its client can know that it is complete.

        Where the response says its length that is its last piece, which is held back; else what the server sends when
        there is no piece left.
        """
        try:
            held: bytes | None = None
            for piece in body:
                if self.instead is not None:
                    break
                if not self._has_length:
                    yield piece
                    continue
                if held is not None:
                    yield held
                held = piece
            if self.instead is not None:
                yield from self.instead
                return
            self._middleware.sessions.end(self._opened)
            if held is not None:
                yield held
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()


def _drop(data: bytes) -> None:
    """What an app writes behind a start that was refused."""


def _shown_headers(environ: Environ) -> tuple[Header, ...]:
    """Of a request's headers the one that a user is shown."""
    agent = environ.get("HTTP_USER_AGENT")
    return ((b"user-agent", agent.encode("latin-1")),) if agent else ()


def _scope_of(environ: Environ) -> dict[str, Any]:
    accept = environ.get("HTTP_ACCEPT", "").encode("latin-1")
    return {
        "type": "http",
        "method": environ["REQUEST_METHOD"],
        "path": environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
        "headers": [(b"accept", accept)] if accept else [],
    }


def _status_line(status: int) -> str:
    return f"{status} {HTTPStatus(status).phrase}"


def _as_text(headers: Iterable[Header]) -> list[TextHeader]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
