""" "Remember me": whether a cookie outlives the browser, per login and by setting; in real Set-Cookie headers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coatcheck import ConfigError, CookiePolicy, SessionMiddleware, connect
from coatcheck.sessions.mapping import REMEMBER, Session
from coatcheck.sessions.policy import HOUR_MS, SessionPolicy

from .in_process import acting, served

LOGIN = "__Host-coatcheck-login"
TWELVE_HOURS = 12 * 3600


def login(remember: bool | None, user: str = "alice") -> Any:
    return acting(lambda session: session.regenerate(user, remember=remember))


def life(lines: list[str], name: str = LOGIN) -> int | None:
    """The Max-Age that the last of these headers gives the cookie; ``None``: it ends with the browser."""
    line = next(line for line in reversed(lines) if line.startswith(f"{name}="))
    ages = [part for part in line.split("; ") if part.startswith("Max-Age=")]
    return int(ages[0].removeprefix("Max-Age=")) if ages else None


@pytest.mark.parametrize(
    ("max_age_s", "remember", "expected"),
    [
        (0, None, None), (0, False, None), (0, True, TWELVE_HOURS),
        (3600, None, 3600), (3600, False, None), (3600, True, 3600), (0.5, True, 1),
    ],
)  # fmt: skip
def test_how_long_the_browser_keeps_the_login(max_age_s: float, remember: bool | None, expected: int | None) -> None:
    async def story() -> None:
        cookies = CookiePolicy(max_age_s=max_age_s)
        async with served(login(remember), cookies=cookies) as server, server.client() as browser:
            assert life((await browser.post("/")).headers.get_list("set-cookie")) == expected

    asyncio.run(story())


def test_it_holds_for_every_later_cookie_of_the_session_on_every_server() -> None:
    async def story() -> None:
        async with served(login(True)) as server, server.client() as browser:
            await browser.post("/")
            server.app = acting(lambda session: session.rotate())
            for _ in range(3):
                assert life((await browser.get("/")).headers.get_list("set-cookie")) == TWELVE_HOURS
            server.middleware.sessions = other = server.another_server()
            await other.start()
            another = SessionMiddleware(server._call, other)
            server.middleware.__dict__.update(another.__dict__)
            assert life((await browser.get("/")).headers.get_list("set-cookie")) == TWELVE_HOURS
            await other.aclose()

    asyncio.run(story())


def test_a_change_of_privilege_keeps_it_and_another_user_starts_anew() -> None:
    async def story() -> None:
        async with served(login(True)) as server, server.client() as browser:
            await browser.post("/")
            server.app = login(None)
            assert life((await browser.post("/")).headers.get_list("set-cookie")) == TWELVE_HOURS
            server.app = login(None, "bob")
            assert life((await browser.post("/")).headers.get_list("set-cookie")) is None

    asyncio.run(story())


def test_what_an_app_puts_under_the_key_is_no_promise() -> None:
    session = Session({REMEMBER: "yes"})
    assert session.remember is None
    assert not session.accessed


def test_a_cookie_that_would_outlive_its_session_is_refused() -> None:
    async def story() -> None:
        policy = SessionPolicy(absolute_timeout_ms=HOUR_MS)
        with pytest.raises(ConfigError, match="cookie_max_age: longer than absolute_timeout"):
            async with served(login(None), policy=policy, cookies=CookiePolicy(max_age_s=3601)):
                raise AssertionError("it was taken")
        async with served(login(None), policy=policy, cookies=CookiePolicy(max_age_s=3600)):
            """As long as the session: fine."""

    asyncio.run(story())


KEY = "AbcdEfgh0123_-AbcdEfgh0123_-AbcdEfgh0123_-A"


def test_a_cookie_that_no_session_keeps_up_with_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """By the library's front door and by the middleware alike, once in a process."""
    connect("memory://", key=KEY, cookies=CookiePolicy(max_age_s=1800))
    assert not caplog.records
    sessions = connect(
        "memory://", key=KEY, idle_timeout_s="7m", rotate_after_s=61, cookies=CookiePolicy(max_age_s=421)
    )
    for _ in range(2):
        SessionMiddleware(login(None), sessions, CookiePolicy(max_age_s=421))
        SessionMiddleware(login(None), sessions, CookiePolicy(max_age_s=59))
    longer, shorter = [record.getMessage() for record in caplog.records]
    assert longer.startswith("cookie_max_age: longer than idle_timeout (7m), so whoever comes back later is logged out")
    assert shorter.startswith("cookie_max_age: no longer than rotate_after (61s)")


def test_a_cookie_that_outlives_every_session_is_refused_at_the_front_door() -> None:
    with pytest.raises(ConfigError, match="cookie_max_age: longer than absolute_timeout"):
        connect("memory://", key=KEY, cookies=CookiePolicy(max_age_s=30 * 86400))
