"""A8: "A session that timed out is closed." """

from __future__ import annotations

import asyncio
import time

import pytest

from coatcheck.events import EventKind
from coatcheck.replication.entry import Entry
from coatcheck.sessions.policy import SessionPolicy

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, Stored, show
from .own_clock import own_clock

ABSOLUTE_S = 2.0
STAGGER_S = 1.1
SESSIONS = 3


def test_it_is_closed_on_every_session_server_and_stays_closed() -> None:
    async def story() -> tuple[list[Entry | None], list[EventKind]]:
        async with own_clock(SessionPolicy(idle_timeout_ms=10_000), servers=3) as clock:
            token = await clock.create()
            created_at = clock.now_ms
            clock.now_ms += 60_000
            assert await clock.open(token) is None
            clock.now_ms = created_at
            assert await clock.open(token) is None, "closed is closed, even if the clock goes back"
            found: list[Entry | None] = []
            for store in clock.stores:
                store.get(token.key, found.append)
            return found, clock.kinds()

    found, kinds = asyncio.run(story())
    assert len(found) == 3
    assert [entry is not None and entry.closed for entry in found] == [True] * 3, "not only on the placed two"
    assert kinds == [EventKind.SESSION_EXPIRED]


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    absolute = f"{ABSOLUTE_S:g}s"
    timeouts = ("--idle-timeout", "1s", "--absolute-timeout", absolute)
    return start("--web", "2", "--session-servers", "3", "--copies", "2", *timeouts)


def test_a_farm_closes_it_when_its_browser_comes_back(farm: MissionFarm) -> None:
    """Web servers forget timed-out sessions every few seconds, and then nothing is left to be closed: of sessions
    that time out a second apart, at most one can be forgotten in the moment before its browser comes back."""
    browsers: list[Browser] = []
    began = time.monotonic()
    for number in range(SESSIONS):
        time.sleep(max(0.0, began + number * STAGGER_S - time.monotonic()))
        browser = Browser(farm)
        browser.put("cart", number)
        browsers.append(browser)
    created = [browser.token for browser in browsers]
    found: list[dict[str, Stored]] = []
    for number, browser in enumerate(browsers):
        time.sleep(max(0.0, created[number].timestamp / 1000 + ABSOLUTE_S + 0.02 - time.time()))
        assert browser.read()["data"] == {}, "timed out"
        found.append(farm.copies_of(created[number].key))
        browser.client.close()
    for copies in found:
        assert not [server for server, copy in copies.items() if not copy.closed], "nothing of it lives"
    closed = [sorted(copies) == farm.names("session") for copies in found]
    assert sum(closed) >= SESSIONS - 1, "a tombstone on every session server"
    events = [row["events"] for row in farm.status()["web_servers"]]
    assert sum(each.get("session.expired", 0) for each in events) >= SESSIONS - 1


def test_nothing_of_it_is_left_to_come_back_with(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        cookie, key = browser.cookie, browser.key
        assert len(farm.copies_of(key)) == 2
    time.sleep(ABSOLUTE_S + 0.1)
    assert not [copy for copy in farm.copies_of(key).values() if not copy.closed]
    for server in farm.names("web"):
        assert show(farm, cookie, server).json()["data"] == {}
