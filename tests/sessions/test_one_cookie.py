"""One cookie that a framework writes itself: what its value becomes, and when a browser is told it again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coatcheck import connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.sessions.answer import OneCookie
from coatcheck.sessions.opened import Opened

SECRET = "for-tests-only-for-tests-only-for-tests-001"


class Browser:
    """One that keeps the value, and asks a web server in this process."""

    def __init__(self, sessions: Sessions, value: bytes = b"") -> None:
        self.sessions = sessions
        self.transport = OneCookie()
        self.value = value

    async def begin(self) -> Opened:
        return await self.sessions.open(self.value, transport=self.transport)

    async def ask(self, act: Callable[[Any], object] = lambda session: None) -> bytes | None:
        opened = await self.begin()
        act(opened.session)
        return await self.finish(opened)

    async def finish(self, opened: Opened) -> bytes | None:
        answer = await self.sessions.finish(opened, 200, [(b"content-length", b"0")])
        assert answer.cookies == []
        assert b"set-cookie" not in dict(answer.headers)
        if answer.token is not None:
            assert dict(answer.headers)[b"cache-control"] == b"no-store"
            self.value = answer.token
        return answer.token


def fill(session: Any) -> None:
    session["value"] = 1


def refresh(session: Any) -> None:
    session.refresh()


def run(story: Callable[[Sessions, list[Event]], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        seen: list[Event] = []
        sessions = connect("memory://", key=SECRET, observer=seen.append, **settings)
        try:
            await story(await sessions.on_this_loop(), seen)
        finally:
            await sessions.here().aclose()

    asyncio.run(whole())


def test_its_value_says_whether_it_is_of_a_login() -> None:
    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        assert await browser.ask() is None
        assert (await browser.ask(fill) or b"")[:2] == b"s."
        before = browser.value
        assert (await browser.ask(lambda session: session.regenerate("ada")) or b"")[:2] == b"l."
        assert (await browser.begin()).session.user == "ada"
        assert dict((await Browser(sessions, before).begin()).session) == {}
        assert await browser.ask(lambda session: session.close()) == b""
        assert EventKind.TOKEN_REJECTED not in {event.kind for event in seen}

    run(story)


def test_a_token_under_the_other_mark_opens_nothing() -> None:
    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        await browser.ask(fill)
        for forged in (b"l." + browser.value[2:], browser.value[2:], b"s.nonsense"):
            assert dict((await Browser(sessions, forged).begin()).session) == {}
        assert [event.kind for event in seen].count(EventKind.TOKEN_REJECTED) == 2

    run(story)


def test_of_several_values_the_first_with_a_mark_counts() -> None:
    transport = OneCookie()
    assert transport.find([b"eyJ9.x.y", b"l.one", b"s.two"]) == b"l.one"
    assert transport.find([b"eyJ9.x.y", b""]) == b""
    assert transport.find([]) == b""


def test_a_browser_is_told_again_what_it_has_and_nothing_is_stored() -> None:
    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        await browser.ask(fill)
        await browser.ask()  # it keeps cookies, so its session is stored for longer
        value = browser.value
        before = (await sessions.list_sessions())[0].version
        assert await browser.ask() is None
        told = await browser.ask(refresh)
        assert told is not None
        assert (await sessions.list_sessions())[0].version == before
        assert dict((await Browser(sessions, value).begin()).session) == {"value": 1}
        assert dict((await Browser(sessions, told).begin()).session) == {"value": 1}

    run(story)


def test_a_browser_that_was_told_a_newer_token_is_not_told_the_older_one() -> None:
    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        await browser.ask(fill)
        slow = Browser(sessions, browser.value)
        assert await browser.ask() is not None
        assert await browser.ask() is not None, "the newest token was shown"
        assert await slow.ask(refresh) is None

    run(story, rotate_after_s=0)


def test_a_session_that_is_over_is_not_told_again() -> None:
    """Or else a late answer would put an anonymous session in the place of the login."""

    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        await browser.ask(fill)
        await browser.ask()
        late = Browser(sessions, browser.value)
        opened = await late.begin()
        await browser.ask(lambda session: session.regenerate("ada"))
        opened.session.refresh()
        assert await late.finish(opened) is None

    run(story)


@pytest.mark.parametrize("clears", [True, False])
def test_a_logout_may_clear_what_the_browser_keeps(clears: bool) -> None:
    async def story(sessions: Sessions, seen: list[Event]) -> None:
        browser = Browser(sessions)
        await browser.ask(fill)
        opened = await sessions.open(browser.value, transport=OneCookie(clear_site_data=clears))
        opened.session.close()
        answer = await sessions.finish(opened)
        assert (b"clear-site-data" in dict(answer.headers)) == clears
        assert answer.token == b""

    run(story)
