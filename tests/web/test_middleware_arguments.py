"""What is no argument of the middleware is one clear line where it is built, not a visitor's 500."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette

from coatcheck import ConfigError, CookiePolicy, ErrorPages, SessionMiddleware, connect

KEY = "for-tests-only-for-tests-only-for-tests-001"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"app": None}, "SessionMiddleware: app: an ASGI app, not NoneType"),
        ({"sessions": "sqlite:///sessions.db"}, r"SessionMiddleware: sessions: what connect\(...\) returns, not str"),
        ({"cookies": {"max_age_s": 60}}, "SessionMiddleware: cookies: a CookiePolicy, not dict"),
        ({"error_pages": {"503.html": b"busy"}}, "SessionMiddleware: error_pages: ErrorPages or a function, not dict"),
        ({"sticky": "no"}, "SessionMiddleware: sticky: choose one of browser, session"),
    ],
)
def test_an_argument_of_the_wrong_kind(changed: dict[str, Any], line: str) -> None:
    arguments = {"app": Starlette(), "sessions": connect("memory://", key=KEY)}
    with pytest.raises(ConfigError, match=line):
        SessionMiddleware(**arguments | changed)


def test_arguments_of_the_right_kind() -> None:
    sessions = connect("memory://", key=KEY)
    SessionMiddleware(Starlette(), sessions, CookiePolicy(), "tag", ErrorPages({"503.html": b"busy"}), "session")
    SessionMiddleware(Starlette(), sessions, error_pages=lambda scope, status, detail: ("text/plain", "busy"))


def test_the_cookies_that_connect_was_given_are_the_middlewares_unless_it_says_otherwise() -> None:
    sessions = connect("sqlite:///sessions.db", key=KEY, cookies=CookiePolicy(name="shop"))
    assert SessionMiddleware(Starlette(), sessions)._transport.login_name == b"__Host-shop-login"
    other = SessionMiddleware(Starlette(), sessions, CookiePolicy(name="other"))
    assert other._transport.login_name == b"__Host-other-login"
    with pytest.raises(ConfigError, match="connect: cookies: a CookiePolicy, not str"):
        connect("memory://", key=KEY, cookies="strict")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="cookie_max_age: longer than absolute_timeout"):
        connect("memory://", key=KEY, cookies=CookiePolicy(max_age_s=86_400), absolute_timeout_s=3600)
