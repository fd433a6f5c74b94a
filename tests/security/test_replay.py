"""Replay cases for rotation: old tokens come back for honest reasons and for others (protocol section 7).

Default policy: a token gets a successor after 60 s, and a replaced one is honest for 60 s more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coatcheck.events import EventKind

from .two_servers import COOKIE, LOGIN, Browser, Servers, shopper, two_servers

DUE_S = 61.0
"""After that long the next answer carries a successor, and the grace of what it replaced is over."""

Story = Callable[[Servers], Awaitable[None]]


def told(story: Story) -> None:
    async def tell() -> None:
        async with two_servers() as servers:
            await story(servers)

    asyncio.run(tell())


async def active(browser: Browser, seconds: float, server: int = 1) -> None:
    """Requests every 20 s."""
    for _ in range(round(seconds / 20)):
        browser.servers.later(20)
        await browser.get(server)


def successors(servers: Servers, answers: list[Any]) -> set[bytes]:
    return {servers.opened(answer.cookies[COOKIE]).session_id for answer in answers if COOKIE in answer.cookies}


def test_parallel_tabs_with_one_old_token() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        old = browser.token().session_id
        servers.later(DUE_S)
        answers = await asyncio.gather(*(browser.send(1 + tab % 2, "GET", "/") for tab in range(6)))
        assert [answer.body["data"] for answer in answers] == [{"n": 1}] * 6
        assert len(successors(servers, answers) - {old}) == 1, "losers of the race get the winner's token"
        for answer in answers:
            tab = browser.copy()
            tab.take(answer)
            assert (await tab.get(2)).body["data"] == {"n": 1}
        assert not servers.accused

    told(story)


def test_a_lost_response_then_a_retry() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        lost = await browser.send(1, "GET", "/")
        servers.later(5)
        again = await browser.get(2)
        assert successors(servers, [lost]) == successors(servers, [again]), "the same successor, never a second one"
        await active(browser, 300)
        assert (await browser.get(1)).body["data"] == {"n": 1}
        assert not servers.accused

    told(story)


def test_a_lost_response_then_a_long_sleep() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        await browser.send(1, "GET", "/")  # lost
        servers.later(25 * 60)
        assert (await browser.get(2)).body["data"] == {"n": 1}
        assert not servers.accused

    told(story)


def test_a_late_answer_overwrites_a_newer_cookie_and_the_browser_sleeps() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        late = await browser.send(1, "GET", "/")
        await browser.get(1)
        await browser.get(1)
        servers.later(DUE_S)
        await browser.get(1)
        browser.take(late)
        servers.later(20 * 60)
        assert (await browser.get(2)).body["data"] == {"n": 1}
        assert not servers.accused

    told(story)


def test_prefetch() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        prefetched, navigated = await asyncio.gather(browser.send(1, "GET", "/"), browser.send(1, "GET", "/"))
        browser.take(navigated)
        assert (await browser.put(1)).body == 2
        servers.later(10)
        browser.take(prefetched)  # used only now, with the cookie of back then
        assert (await browser.get(2)).body["data"] == {"n": 2}
        assert not servers.accused

    told(story)


@pytest.mark.parametrize("ends_on", [1, 2])
def test_a_slow_upload_that_started_two_rotations_ago(ends_on: int) -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        upload = asyncio.create_task(browser.send(ends_on, "POST", "/slow"))
        await servers.gate.entered.wait()
        first = browser.token().session_id
        await active(browser, 240)
        assert browser.token().session_id != first
        servers.gate.opened.set()
        answer = await upload
        assert answer.status == 200
        newest = browser.token().session_id
        assert successors(servers, [answer]) <= {newest}, "a late answer brings the newest token, never an older one"
        browser.take(answer)
        assert (await browser.get(1)).body["data"] == {"n": 1, "slow": "done"}
        assert not servers.accused

    told(story)


def test_two_servers_rotating_at_once() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        for round_ in range(5):
            servers.later(DUE_S)
            answers = await asyncio.gather(browser.send(1, "GET", "/"), browser.send(2, "GET", "/"))
            assert [answer.status for answer in answers] == [200, 200]
            assert len(successors(servers, list(answers)) - {browser.token().session_id}) == 1
            browser.take(answers[round_ % 2])
        assert not servers.accused

    told(story)


@pytest.mark.parametrize("second", [1, 2])
def test_the_same_request_delivered_twice_by_a_proxy(second: int) -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        once = await browser.send(1, "POST", "/put?key=n")
        twice = await browser.send(second, "POST", "/put?key=n")
        assert (once.body, twice.body) == (2, 3), "what a request does twice is the app's to know"
        assert successors(servers, [once]) == successors(servers, [twice])
        browser.take(twice)
        servers.later(10)
        assert (await browser.get(1)).body["data"] == {"n": 3}
        assert not servers.accused

    told(story)


def test_back_button() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        page = await browser.get(1)
        assert page.headers["cache-control"] == "no-store", "so the browser asks again instead of showing a stored page"
        await active(browser, 300)
        assert (await browser.get(1)).body["data"] == {"n": 1}, "it asks with the newest cookie"
        await browser.post(1, "/logout")
        for server in (1, 2):
            assert (await browser.get(server)).body == {"user": None, "data": {}}
        assert not servers.accused

    told(story)


def test_a_thief_before_the_victim() -> None:
    async def story(servers: Servers) -> None:
        victim = await shopper(servers)
        thief = victim.copy()
        await active(thief, 300, server=2)
        assert (await victim.get(1)).body["data"] == {}
        assert servers.accused
        for server in (1, 2):
            assert (await thief.get(server)).body["data"] == {}, "the session is closed for both"

    told(story)


def test_a_thief_after_the_victim() -> None:
    async def story(servers: Servers) -> None:
        victim = await shopper(servers)
        thief = victim.copy()
        await active(victim, 300)
        assert not servers.accused
        assert (await thief.get(2)).body["data"] == {}
        assert servers.accused
        assert (await victim.get(1)).body["data"] == {}

    told(story)


def test_a_thief_alternating_with_the_victim_in_spells() -> None:
    async def story(servers: Servers) -> None:
        victim = await shopper(servers)
        thief = victim.copy()
        await active(thief, 300, server=2)
        await active(victim, 300)
        assert servers.accused
        assert (await thief.get(2)).body["data"] == (await victim.get(1)).body["data"] == {}

    told(story)


@pytest.mark.parametrize(("gap_s", "found"), [(25, False), (100, True)])
def test_a_thief_who_alternates_request_by_request(gap_s: float, found: bool) -> None:
    """Within the grace of each other they look like two tabs of one browser: the threat model says so, and a closed
    session ends it. At a slower pace they cannot keep in step."""

    async def story(servers: Servers) -> None:
        victim = await shopper(servers)
        thief = victim.copy()
        for _ in range(12):
            for browser in (thief, victim):
                servers.later(gap_s)
                await browser.get(1)
        assert bool(servers.accused) is found
        assert (await victim.get(1)).body["data"] == ({} if found else {"n": 1})
        await victim.post(1, "/logout")
        assert (await thief.get(2)).body["data"] == {}

    told(story)


def test_a_thief_inside_the_grace_cannot_be_told_apart() -> None:
    async def story(servers: Servers) -> None:
        victim = await shopper(servers)
        thief = victim.copy()
        servers.later(DUE_S)
        await victim.get(1)
        await victim.get(1)
        servers.later(30)
        assert (await thief.get(2)).body["data"] == {"n": 1}
        assert not servers.accused
        await active(victim, 300)
        assert (await thief.get(2)).body["data"] == {}, "detected when both are active again"
        assert servers.accused

    told(story)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("out_at", [1, 2])
def test_logout_racing_a_slow_request(method: str, out_at: int) -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        stale = browser.copy()
        slow = asyncio.create_task(browser.send(1, method, "/slow"))
        await servers.gate.entered.wait()
        assert (await browser.post(out_at, "/logout")).cookies[COOKIE] == ""
        servers.gate.opened.set()
        late = await slow
        assert late.status == (409 if method == "POST" else 200)
        assert COOKIE not in late.cookies
        for server in (1, 2):
            assert (await stale.get(server)).body["data"] == {}, "a slow request does not undo a logout"
        assert not servers.accused

    told(story)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("in_at", [1, 2])
def test_login_racing_an_old_token(method: str, in_at: int) -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        before = browser.copy()
        slow = asyncio.create_task(browser.send(1, method, "/slow"))
        await servers.gate.entered.wait()
        await browser.post(in_at, "/login")
        logged_in = browser.jar[LOGIN]
        servers.gate.opened.set()
        late = await slow
        assert LOGIN not in late.cookies, "a late answer touches the anonymous cookie alone"
        browser.take(late)
        assert browser.jar[LOGIN] == logged_in
        for server in (1, 2):
            assert (await browser.get(server)).body == {"user": "ada", "data": {"n": 1}}
            assert (await before.get(server)).body == {"user": None, "data": {}}
        assert not servers.accused

    told(story)


@pytest.mark.parametrize("dies", ["before the put", "after the put"])
@pytest.mark.parametrize("victim", [0, 1])
def test_rotation_while_a_session_server_dies(dies: str, victim: int) -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        servers.later(DUE_S)
        store = servers.stores[victim]
        if dies == "before the put":
            await store.aclose()
        store.dies_of_next_put = dies == "after the put"
        old = browser.token().session_id
        rotated = await browser.get(1)
        assert rotated.body["data"] == {"n": 1}
        assert browser.token().session_id != old
        assert EventKind.BELOW_TARGET in servers.kinds(), "never below the target silently"
        for server in (2, 1, 2):
            servers.later(30)
            assert (await browser.get(server)).body["data"] == {"n": 1}
        await store.open()
        await active(browser, 200, server=2)
        assert (await browser.get(1)).body["data"] == {"n": 1}
        assert not servers.accused
        assert EventKind.SESSION_ROLLED_BACK not in servers.kinds()

    told(story)
