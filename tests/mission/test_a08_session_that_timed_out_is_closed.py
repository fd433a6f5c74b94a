"""A8: "A session that timed out is closed." """

from __future__ import annotations

import asyncio
import time

import pytest

from coatcheck.events import EventKind
from coatcheck.replication.entry import Entry
from coatcheck.sessions.policy import SessionPolicy

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, show
from .own_clock import own_clock

ABSOLUTE_S = 2.0


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
    assert kinds == [EventKind.SESSION_CREATED, EventKind.SESSION_EXPIRED]


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    absolute = f"{ABSOLUTE_S:g}s"
    timeouts = ("--idle-timeout", "1s", "--absolute-timeout", absolute)
    return start("--web", "2", "--session-servers", "3", "--copies", "2", *timeouts)


def test_a_farm_closes_it_when_its_browser_comes_back(farm: MissionFarm) -> None:
    before = expired(farm)
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        key, timestamp = browser.key, browser.token.timestamp
        time.sleep(max(0.0, timestamp / 1000 + ABSOLUTE_S + 0.05 - time.time()))
        assert browser.read()["data"] == {}, "timed out"
    copies = farm.copies_of(key)
    assert sorted(copies) == farm.names("session"), "a tombstone on every session server, not only on the placed two"
    assert all(copy.closed for copy in copies.values())
    assert expired(farm) == before + 1


def expired(farm: MissionFarm) -> int:
    return sum(row["events"].get("session.expired", 0) for row in farm.status()["web_servers"])


@pytest.mark.parametrize("late_s", [0.05, 6.0], ids=["at once", "long after"])
def test_a_farm_never_serves_it_again(farm: MissionFarm, late_s: float) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        cookie, token = browser.cookie, browser.token
        assert len(farm.copies_of(token.key)) == 2
        time.sleep(max(0.0, token.timestamp / 1000 + ABSOLUTE_S + late_s - time.time()))
        for server in farm.names("web"):
            response = show(farm, cookie, server)
            assert (response.status_code, response.json()) == (200, {"data": {}, "server": server})
        assert not [copy for copy in farm.copies_of(token.key).values() if not copy.closed], "no copy is alive"
        browser.put("cart", "coffee")
        assert browser.key != token.key, "what the browser does next is another session"
        assert browser.read()["data"] == {"cart": "coffee"}
