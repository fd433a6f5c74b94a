"""The WSGI middleware, under wsgiref's validator (PEP 3333): streams, refusals, errors, HEAD, wrong arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from http.cookies import SimpleCookie
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from coatcheck import CookiePolicy, ErrorPages, connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConfigError, SessionDataError
from coatcheck.web.wsgi import KEY, SessionMiddleware, WSGIApp

SECRET = "for-tests-only-for-tests-only-for-tests-001"


@pytest.fixture
def sessions() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=SECRET, driver="threads")
    yield made
    made.close()


class Browser:
    """One that keeps cookies and asks an app in this process."""

    def __init__(self, app: WSGIApp, checked: bool = True) -> None:
        self._app: Any = validator(app) if checked else app
        self.cookies: dict[str, str] = {}
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.starts = 0

    def begin(self, path: str, method: str = "GET") -> Iterable[bytes]:
        """The body, not read yet."""
        environ: dict[str, Any] = {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": "", "REQUEST_METHOD": method}
        environ["REMOTE_ADDR"] = "127.0.0.1"
        environ["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        setup_testing_defaults(environ)
        body: Iterable[bytes] = self._app(environ, self._start)
        return body

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        self.starts += 1
        self.status, self.headers = int(status[:3]), headers
        for name, value in headers:
            if name.lower() == "set-cookie":
                for key, morsel in SimpleCookie(value).items():
                    self.cookies[key] = morsel.value
                    if morsel["max-age"] == "0":
                        del self.cookies[key]
        return lambda data: None

    def ask(self, path: str, method: str = "GET") -> str:
        body = self.begin(path, method)
        try:
            return b"".join(body).decode()
        finally:
            getattr(body, "close", lambda: None)()

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


def shop(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    session = environ[KEY]
    match environ["PATH_INFO"]:
        case "/add":
            session["items"] = session.get("items", 0) + 1
        case "/login":
            session.regenerate("ada")
        case "/logout":
            session.close()
        case "/unstorable":
            session["what"] = object()
        case "/500":
            session["items"] = 99
            start("500 Oops", [("Content-Type", "text/plain")])
            return [b"oops"]
    text = f"{session.user} {session.get('items', 0)}".encode()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text]


def test_a_session_from_first_item_to_logout(sessions: ThreadedSessions) -> None:
    browser = Browser(SessionMiddleware(shop, sessions))
    assert browser.ask("/add") == "None 1"
    assert browser.ask("/add") == "None 2"
    assert browser.header("cache-control") is not None, "caches are told"
    assert browser.ask("/login", "POST") == "ada 2"
    stolen = dict(browser.cookies)
    browser.ask("/logout", "POST")
    assert browser.cookies == {}
    browser.cookies = stolen
    assert browser.ask("/") == "None 0"


def test_what_is_changed_behind_the_start_is_stored_before_a_list_leaves(sessions: ThreadedSessions) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        session = environ[KEY]
        found = repr(dict(session)).encode()
        session["seen"] = 1
        start("200 OK", [("Content-Type", "text/plain")])
        session["late"] = 2
        return [found]

    browser = Browser(SessionMiddleware(app, sessions), checked=False)  # the validator's bodies are no lists
    browser.ask("/")
    assert browser.ask("/") == "{'seen': 1, 'late': 2}"


def test_a_request_that_fails_keeps_nothing(sessions: ThreadedSessions) -> None:
    browser = Browser(SessionMiddleware(shop, sessions))
    browser.ask("/add")
    assert browser.ask("/500") == "oops"
    assert browser.ask("/") == "None 1"


def test_what_cannot_be_stored_is_said_to_the_app(sessions: ThreadedSessions) -> None:
    with pytest.raises(SessionDataError, match="what"):
        Browser(SessionMiddleware(shop, sessions), checked=False).ask("/unstorable")


def streaming(length: bool, closed: list[str]) -> WSGIApp:
    class Body:
        def __init__(self, session: Any) -> None:
            self.pieces = self.stream(session)

        def stream(self, session: Any) -> Iterator[bytes]:
            yield b"one "
            session["seen"] = session.get("seen", 0) + 1
            yield b"two"

        def __iter__(self) -> Iterator[bytes]:
            return self.pieces

        def close(self) -> None:
            closed.append("closed")

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        session = environ[KEY]
        if environ["PATH_INFO"] == "/":
            start("200 OK", [("Content-Type", "text/plain")])
            return [str(session.get("seen", 0)).encode()]
        session["begun"] = True
        start("200 OK", [("Content-Type", "text/plain"), *([("Content-Length", "7")] if length else [])])
        return Body(session)

    return app


@pytest.mark.parametrize("length", [True, False])
def test_what_is_changed_while_the_body_is_streamed_is_stored_before_its_end(
    sessions: ThreadedSessions, length: bool
) -> None:
    closed: list[str] = []
    browser = Browser(SessionMiddleware(streaming(length, closed), sessions))
    assert browser.ask("/stream") == "one two"
    assert closed == ["closed"]
    body = iter(browser.begin("/stream"))
    assert next(body) == b"one "
    assert next(body) == b"two"
    other = Browser(browser._app)
    other.cookies = dict(browser.cookies)
    assert int(other.ask("/")) == (2 if length else 1), "with a length, its client knows now that it is complete"
    assert list(body) == []
    assert other.ask("/") == "2"
    body.close()  # type: ignore[attr-defined]


def test_a_stream_without_a_length_holds_no_piece_back(sessions: ThreadedSessions) -> None:
    made: list[int] = []

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/event-stream")])
        for number in range(3):
            made.append(number)
            yield b"data: x\n\n"

    body = iter(Browser(SessionMiddleware(app, sessions)).begin("/"))
    for seen in range(1, 4):
        next(body)
        assert len(made) == seen
    body.close()  # type: ignore[attr-defined]


def test_an_app_that_is_a_generator_starts_its_answer_when_it_is_read(sessions: ThreadedSessions) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        session = environ[KEY]
        session["n"] = session.get("n", 0) + 1
        start("200 OK", [("Content-Type", "text/plain")])
        yield str(session["n"]).encode()

    browser = Browser(SessionMiddleware(app, sessions))
    assert [browser.ask("/") for _ in range(3)] == ["1", "2", "3"]


def test_an_error_behind_the_start_replaces_the_answer_and_undoes_nothing(sessions: ThreadedSessions) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ[KEY]["n"] = 1
        start("200 OK", [("Content-Type", "text/plain")])
        try:
            raise RuntimeError("behind the start")
        except RuntimeError:
            start("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"oops"]

    browser = Browser(SessionMiddleware(app, sessions))
    assert browser.ask("/") == "oops"
    assert (browser.status, browser.starts) == (500, 2)


def test_a_change_that_is_not_stored_is_refused() -> None:
    sessions = connect("redis://127.0.0.1:1", key=SECRET, driver="threads", store_timeout_s=0.2)
    body_was_closed: list[bool] = []

    class Body(list[bytes]):
        def close(self) -> None:
            body_was_closed.append(True)

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        environ[KEY]["n"] = 1
        start("200 OK", [("Content-Type", "text/plain"), ("X-Secret", "1")])(b"written")
        return Body([b"not true"])

    try:
        pages = ErrorPages({"503.html": b"<p>busy"})
        browser = Browser(SessionMiddleware(app, sessions, error_pages=pages), checked=False)
        said = browser.ask("/")
        assert (browser.status, browser.header("x-secret"), browser.header("retry-after")) == (503, None, "1")
        assert "not true" not in said
        assert browser.ask("/", "HEAD") == ""
        assert body_was_closed == [True, True]
        browser.cookies = {"__Host-coatcheck": "x"}
        assert "not true" not in browser.ask("/")
    finally:
        sessions.close()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"app": None}, "app: a WSGI app, not NoneType"),
        ({"sessions": "sqlite:///s.db"}, r"sessions: what connect\(..., driver='threads'\) returns, not str"),
        ({"sessions": connect("memory://", key=SECRET)}, "a WSGI app needs connect"),
        ({"cookies": {"max_age_s": 60}}, "cookies: a CookiePolicy, not dict"),
        ({"sticky": "no"}, "sticky: choose one of browser, session"),
    ],
)
def test_an_argument_of_the_wrong_kind(sessions: ThreadedSessions, changed: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        SessionMiddleware(**{"app": shop, "sessions": sessions} | changed)


def test_its_cookies_are_its_own(sessions: ThreadedSessions) -> None:
    browser = Browser(SessionMiddleware(shop, sessions, CookiePolicy(name="shop", insecure_localhost=True)))
    browser.ask("/add")
    assert set(browser.cookies) == {"shop"}
