"""Repair in the background: what is copied again, when, and what cannot stop it (mission B9)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import pytest

from coatcheck.drivers.background_repair import BackgroundRepair, scan
from coatcheck.drivers.sessions import Sessions
from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Flow
from coatcheck.replication.repair import Repair, Repaired
from coatcheck.replication.version import Version
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import ScanReply, Unreachable

from .trade import Trade, begun, changed, opened, trade

DEADLINE_S = 60.0


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def holders(farm: Trade, key: bytes) -> int:
    return sum(
        not store._closed and store.table.get(key, round(time.monotonic() * 1000)) is not None for store in farm.stores
    )


@pytest.mark.parametrize("sessions", [1, 100])
def test_what_a_lost_session_server_held_is_copied_to_another(sessions: int) -> None:
    async def story() -> None:
        async with trade(3) as farm:
            home = await farm.server()
            issues = [await begun(home, n=number) for number in range(sessions)]
            lost = farm.stores[0]
            placed_there = lost.table.entries
            await lost.aclose()
            await until(lambda: all(holders(farm, issue.token.key) == 2 for issue in issues))
            await until(lambda: home.status()["recopy"]["outcomes"].get("mended", 0) >= placed_there)
            await until(lambda: home.status()["recopy"]["done"] == home.status()["recopy"]["total"])
            assert home.status()["recopy"]["total"] >= placed_there
            await until(lambda: not home.copies.under_replicated)
            for number, issue in enumerate(issues):
                assert await opened(home, issue) == {"n": number}

    asyncio.run(story())


def test_every_outcome_is_counted_from_the_start() -> None:
    """Whoever watches a count increase sees nothing of its first time, if it appears then."""

    async def story() -> None:
        async with trade(2) as farm:
            home = await farm.server()
            assert home.status()["recopy"]["outcomes"] == dict.fromkeys(
                ("nothing", "whole", "mended", "partial", "contended"), 0
            )

    asyncio.run(story())


def test_a_session_server_that_comes_back_empty_is_filled_again() -> None:
    async def story() -> None:
        async with trade(2) as farm:
            home = await farm.server()
            issues = [await begun(home, n=number) for number in range(20)]
            empty = farm.stores[1]
            await empty.aclose()
            for issue in issues:
                empty.table._shard(issue.token.key).clear()
            await until(lambda: len(home.copies.under_replicated) == 20)
            await empty.open()
            await until(lambda: not home.copies.under_replicated)
            await until(lambda: all(holders(farm, issue.token.key) == 2 for issue in issues))

    asyncio.run(story())


def test_sessions_that_nobody_hosts_are_found_by_scanning() -> None:
    async def story() -> None:
        async with trade(3) as farm:
            gone, home = await farm.server(), await farm.server()
            issues = [await begun(gone, n=number) for number in range(30)]
            await gone._repair.stop()  # type: ignore[union-attr]  # that web server died
            assert len(home.copies.cache) == 0
            await farm.stores[0].aclose()
            await until(lambda: all(holders(farm, issue.token.key) == 2 for issue in issues))
            assert await opened(home, issues[7]) == {"n": 7}

    asyncio.run(story())


def test_a_close_that_one_server_missed_is_finished_when_it_is_back() -> None:
    async def story() -> None:
        async with trade(2) as farm:
            home, other = await farm.server(), await farm.server()
            issue = await begun(home)
            await farm.stores[1].aclose()
            await changed(home, issue, lambda session: session.close())
            assert home.status()["closing"] == 1
            await farm.stores[1].open()
            await until(lambda: home.status()["closing"] == 0)
            await farm.stores[0].aclose()
            assert await opened(other, issue) is None, "the one that missed it knows it now"

    asyncio.run(story())


def test_an_unfinished_close_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions are to be copied to a session server that is back, a logout does not wait for them."""
    genuine = Repair.repair
    looked_at: list[bytes] = []

    def repair(self: Repair, key: bytes) -> Flow[Repaired]:
        looked_at.append(key)
        return genuine(self, key)

    async def story() -> None:
        async with trade(2) as farm:
            home = await farm.server()
            issues = [await begun(home, n=number) for number in range(200)]
            await farm.stores[1].aclose()
            await until(lambda: len(home.copies.under_replicated) == len(issues))
            await changed(home, issues[100], lambda session: session.close())
            assert home.status()["closing"] == 1
            monkeypatch.setattr(Repair, "repair", repair)
            await farm.stores[1].open()
            await until(lambda: len(looked_at) > BackgroundRepair.PARALLEL)
            assert looked_at[0] == issues[100].token.key

    asyncio.run(story())


def test_a_session_that_cannot_be_repaired_does_not_end_the_repair_of_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = Repair.repair
    spoilt: list[bytes] = []

    def repair(self: Repair, key: bytes) -> Flow[Repaired]:
        if key in spoilt:
            raise LookupError("unforeseen")
        return genuine(self, key)

    monkeypatch.setattr(Repair, "repair", repair)

    async def story() -> None:
        async with trade(3) as farm:
            home = await farm.server()
            issues = [await begun(home, n=number) for number in range(40)]
            spoilt.append(issues[0].token.key)
            for store in farm.stores[:2]:  # one after the other: the second loss finds the repair alive
                await store.aclose()
                others = {issue.token.key for issue in issues[1:]}
                await until(lambda others=others: not others & home.copies.under_replicated.keys())  # type: ignore[misc]
                await store.open()
                await until(lambda: home.copies.under_replicated.keys() <= set(spoilt))
            await until(lambda: "cannot be repaired" in caplog.text)
            assert issues[0].token.key.hex() not in caplog.text

    asyncio.run(story())


class SlowScan(MemoryStore):
    """Replies to a scan when it is closed, as a networked store does."""

    def __init__(self) -> None:
        super().__init__("slow", time.monotonic)
        self.waiting: list[Callable[[ScanReply], None]] = []

    def scan(self, cursor: int, limit: int, reply: Callable[[ScanReply], None]) -> None:
        self.waiting.append(reply)

    async def aclose(self) -> None:
        await super().aclose()
        for reply in self.waiting:
            reply(Unreachable("closed"))


def test_stopping_in_the_middle_of_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackgroundRepair, "SCAN_DELAY_S", 0.01)

    async def story() -> None:
        async with trade(2) as farm:
            store = SlowScan()
            sessions = Sessions(farm="farm", server_name="web", stores=[store], ring=farm.ring, copies=1)
            await sessions.start()
            store._reachability.set(False)
            store._reachability.set(True)
            await until(lambda: store.waiting)
            waiting = asyncio.create_task(scan(store, 0, 10))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await sessions.aclose()
            assert len(store.waiting) == 2

    asyncio.run(story())


class Pauses:
    """How much the longest callback of the event loop computes, in calls of functions.

    A time would be the machine's: a virtual machine that was stopped for 20 ms books them on whoever was running.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.greatest = 0
        self._calls = 0
        run = asyncio.Handle._run

        def measured(handle: asyncio.Handle) -> None:
            self._calls = 0
            sys.setprofile(self._count)
            try:
                run(handle)
            finally:
                sys.setprofile(None)
            self.greatest = max(self.greatest, self._calls)

        monkeypatch.setattr(asyncio.Handle, "_run", measured)

    def _count(self, frame: object, event: str, argument: object) -> None:
        self._calls += event in ("call", "c_call")


def test_however_many_are_hosted_a_lost_server_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 sessions: they are looked through, and copied again, in pieces between which others have their turn."""

    async def story() -> None:
        async with trade(3) as farm:
            home = await farm.server()
            copies, expires_at = home.copies, home.copies.world.now_ms() + 3_600_000
            for number in range(100_000):
                key, version = number.to_bytes(16, "big"), Version(1, copies.server_id + b"owner", 1)
                copy = Copy(key, version, (version,), b"a body")
                copy.expires_at, copy.contact = expires_at, copies.puts.contact
                copy.stored_on(copies.placement.ranking(key)[:2], version)
                copies.cache.add(copy)
            pauses = Pauses(monkeypatch)
            await farm.stores[0].aclose()
            await until(lambda: home.status()["recopy"]["outcomes"].get("mended", 0) >= 2_000)
            assert 0 < pauses.greatest < 30_000, "all of them at once are more than 500,000"

    asyncio.run(story())
