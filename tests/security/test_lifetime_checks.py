"""Lifetime checks, by their numbers in OWASP ASVS 5.0 (7.1, 7.3, 7.4, 10.4)."""

from __future__ import annotations

import asyncio

import pytest

from coatcheck.errors import ConfigError
from coatcheck.events import EventKind
from coatcheck.sessions.policy import HOUR_MS, MINUTE_MS, SessionPolicy

from .two_servers import COOKIE, LOGIN, shopper, two_servers

SHORT = SessionPolicy(idle_timeout_ms=10 * MINUTE_MS, absolute_timeout_ms=60 * MINUTE_MS)
IDLE_S, ABSOLUTE_S = 600, 3600
SLACK_S = 600 / 8 + 5
"""Idle is judged at idle + one touch + leeway."""


@pytest.mark.parametrize(("idle_s", "alive"), [(IDLE_S - 1, True), (IDLE_S + SLACK_S + 1, False)])
@pytest.mark.parametrize("server", [1, 2])
def test_7_3_1_idle_timeout(idle_s: float, alive: bool, server: int) -> None:
    async def story() -> None:
        async with two_servers(SHORT) as servers:
            browser = await shopper(servers)
            servers.later(idle_s)
            assert (await browser.get(server)).body["data"] == ({"n": 1} if alive else {})
            assert (EventKind.SESSION_EXPIRED in servers.kinds()) is not alive
            assert not servers.accused

    asyncio.run(story())


def test_7_3_1_reading_counts_as_activity() -> None:
    async def story() -> None:
        async with two_servers(SHORT) as servers:
            browser = await shopper(servers)
            for number in range(6):
                servers.later(IDLE_S - 30)
                assert (await browser.get(1 + number % 2)).body["data"] == {"n": 1}

    asyncio.run(story())


def test_7_3_2_absolute_timeout_however_active() -> None:
    async def story() -> None:
        async with two_servers(SHORT) as servers:
            browser = await shopper(servers)
            for _ in range(11):
                servers.later(300)
                assert (await browser.put(1)).status == 200
            assert (await browser.get(1)).body["data"] == {"n": 12}
            servers.later(ABSOLUTE_S - 11 * 300 + 1)
            for server in (1, 2):
                assert (await browser.send(server, "GET", "/")).body["data"] == {}, "rotation never extends it"

    asyncio.run(story())


def test_7_3_the_servers_clock_decides() -> None:
    """Nothing that a browser sends moves a deadline: not a Date header, not its own old token."""

    async def story() -> None:
        async with two_servers(SHORT) as servers:
            browser = await shopper(servers)
            servers.later(IDLE_S + SLACK_S + 1)
            answer = await browser.send(1, "GET", "/", date="Fri, 21 Nov 2025 00:00:00 GMT", age="0")
            assert answer.body["data"] == {}

    asyncio.run(story())


def test_7_3_a_session_that_timed_out_stays_dead_when_the_clock_goes_back() -> None:
    async def story() -> None:
        async with two_servers(SHORT) as servers:
            browser = await shopper(servers)
            servers.later(IDLE_S + SLACK_S + 1)
            assert (await browser.send(1, "GET", "/")).body["data"] == {}
            servers.later(-IDLE_S)
            for server in (1, 2):
                assert (await browser.send(server, "GET", "/")).body["data"] == {}

    asyncio.run(story())


@pytest.mark.parametrize("out_at", [1, 2])
def test_7_4_1_after_logout_the_token_is_dead_on_every_server(out_at: int) -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            await browser.post(1, "/login")
            await browser.get(2)
            stale = browser.copy()
            answer = await browser.post(out_at, "/logout")
            assert answer.cookies[LOGIN] == ""
            for server in (1, 2, 1):
                reply = await stale.send(server, "GET", "/")
                assert reply.body == {"user": None, "data": {}}
                assert not reply.cookies, "dead tokens set, clear and mint nothing"
                assert (await stale.send(server, "POST", "/put?key=n")).body == 1, "a session of its own"

    asyncio.run(story())


def test_7_4_1_a_logout_reaches_a_session_server_that_was_away() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            stale = browser.copy()
            await servers.stores[1].aclose()
            await browser.post(1, "/logout")
            assert EventKind.CLOSE_INCOMPLETE in servers.kinds(), "closing, 1 of 2: it says so"
            await servers.stores[1].open()  # back, with its old copy
            await servers.stores[0].aclose()
            assert (await stale.send(1, "GET", "/")).body["data"] == {}

    asyncio.run(story())


def test_10_4_5_reuse_of_a_replaced_token_revokes_the_family() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            thief = browser.copy()
            for _ in range(15):
                servers.later(20)
                await browser.get(1)
            await thief.send(2, "GET", "/")
            for server in (1, 2):
                assert (await browser.send(server, "GET", "/")).body["data"] == {}
            theft = next(event for event in servers.events if event.kind is EventKind.SESSION_THEFT)
            assert theft.session
            assert "close" in theft.detail

    asyncio.run(story())


@pytest.mark.parametrize(
    ("theft", "victim_data", "thief_data"), [("refuse", {"n": 1}, {}), ("report", {"n": 1}, {"n": 1})]
)
def test_10_4_5_what_happens_on_theft_can_be_chosen(theft: str, victim_data: object, thief_data: object) -> None:
    async def story() -> None:
        async with two_servers(SessionPolicy(theft=theft)) as servers:  # type: ignore[arg-type]
            browser = await shopper(servers)
            thief = browser.copy()
            for _ in range(15):
                servers.later(20)
                await browser.get(1)
            assert (await thief.send(2, "GET", "/")).body["data"] == thief_data
            assert servers.accused
            assert (await browser.get(1)).body["data"] == {"n": 1}

    asyncio.run(story())


@pytest.mark.parametrize(
    "wrong",
    [
        {"idle_timeout_ms": 0},
        {"absolute_timeout_ms": 0},
        {"absolute_timeout_ms": -1},
        {"grace_ms": -1},
        {"rotate_after_ms": -1},
        {"leeway_ms": -1},
        {"grace_ms": 0},
    ],
)
def test_7_1_timeouts_are_settable_and_wrong_ones_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        SessionPolicy(**wrong).check()  # type: ignore[arg-type]
    assert SessionPolicy().idle_timeout_ms == 30 * MINUTE_MS
    assert SessionPolicy().absolute_timeout_ms == 12 * HOUR_MS


def test_7_2_4_the_old_session_is_closed_before_the_login_answers() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            key = browser.token().key
            answer = await browser.post(2, "/login")
            assert answer.cookies[COOKIE] == ""
            info = await servers.sessions[0].show(key)
            assert info is not None
            assert info.state == "closed"
            assert len(info.copies) == 2

    asyncio.run(story())
