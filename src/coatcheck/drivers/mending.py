"""Repair in the background: who is repaired when, and how fast (protocol section 9, mission B9)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from coatcheck.drivers.asyncio_driver import AsyncioDriver, World
from coatcheck.errors import SessionUnavailable
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.repair import Repair, Repaired
from coatcheck.stores.port import ScanReply, Store, Unreachable

log = logging.getLogger("coatcheck.sessions")


async def scan(store: Store, cursor: int, limit: int) -> ScanReply:
    """One step of a scan, awaited."""
    future: asyncio.Future[ScanReply] = asyncio.get_running_loop().create_future()
    # Who waits may be cancelled before the store replies.
    store.scan(cursor, limit, lambda reply: None if future.done() else future.set_result(reply))
    return await future


class Round:
    """How far one look through the sessions has come."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, total: int) -> None:
        self.total, self.done = total, 0
        self.complained = False
        """Whether one failure is logged already: the same one may befall every session."""


class Mending:
    """Copies hosted sessions again when a session server is lost or back, then looks after sessions that
    nobody hosts, by scanning the session servers. Every step is paced."""

    INTERVAL_S = 5.0
    """How often hosted sessions are looked through without any alarm."""
    SETTLE_S = 0.05
    """After an alarm: servers that fail together are taken together."""
    PARALLEL = 16
    PAUSE_S = 0.005
    """Between batches of :attr:`PARALLEL` repairs: at most 3,200 sessions a second."""
    SCAN_DELAY_S = 1.0
    """Plus a random part of the same length, so that web servers do not scan in step."""
    SCAN_STEP = 256
    EXPIRY_STEP = 1000

    def __init__(self, copies: Copies, stores: Mapping[str, Store], driver: AsyncioDriver, world: World) -> None:
        self._copies = copies
        self._stores = stores
        self._driver = driver
        self._world = world
        self._repair = Repair(copies)
        self._alarm = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._scan_wanted = True
        """At the start too: a web server that was killed in the middle of a write may have left unequal copies."""
        self._hosted = Round()
        self._unhosted = Round()
        self._outcomes: Counter[Repaired] = Counter()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._mend()), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def on_change(self, server: str, reachable: bool) -> None:
        """A session server is lost or back: what it holds is no longer taken for granted."""
        self._repair.lost_server(server)
        self._scan_wanted = True
        self._alarm.set()

    def progress(self) -> dict[str, Any]:
        """``total`` and ``done`` of the current or last rounds, and the outcomes since the start."""
        outcomes = {outcome.name.lower(): count for outcome, count in self._outcomes.items()}
        rounds = self._hosted, self._unhosted
        return {"total": sum(r.total for r in rounds), "done": sum(r.done for r in rounds), "outcomes": outcomes}

    async def _mend(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self.INTERVAL_S):
                    await self._alarm.wait()
                await asyncio.sleep(self.SETTLE_S)
            except TimeoutError:
                self._copies.cache.drop_expired(self._world.now_ms(), self.EXPIRY_STEP)
            self._alarm.clear()
            await self._repair_all(self._hosted, self._repair.needs_repair())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.SCAN_DELAY_S * (1 + self._world.jitter()))
            if self._scan_wanted:
                self._scan_wanted = False
                for name in self._copies.placement.servers:
                    await self._scan(self._stores[name])

    async def _scan(self, store: Store) -> None:
        cursor = -1
        while cursor and store.reachable:
            reply = await scan(store, max(cursor, 0), self.SCAN_STEP)
            if isinstance(reply, Unreachable):
                return
            cursor, keys = reply
            await self._repair_all(self._unhosted, [key for key in keys if self._copies.cache.get(key) is None])

    async def _repair_all(self, progress: Round, keys: list[bytes]) -> None:
        if not keys:
            return
        progress.begin(len(keys))
        for start in range(0, len(keys), self.PARALLEL):
            await asyncio.gather(*(self._repair_one(progress, key) for key in keys[start : start + self.PARALLEL]))
            await asyncio.sleep(self.PAUSE_S)

    async def _repair_one(self, progress: Round, key: bytes) -> None:
        outcome = Repaired.PARTIAL
        try:
            outcome = await self._driver.run(self._exclusive(key))
        except SessionUnavailable as unavailable:
            self._world.report(Event(EventKind.BELOW_TARGET, detail=f"repair: {unavailable}"))
        except Exception as failure:
            # One session that cannot be repaired must not end the repair of all the others.
            if not progress.complained:
                progress.complained = True
                log.error("session %s cannot be repaired", public_id(key), exc_info=failure)
        self._outcomes[outcome] += 1
        progress.done += 1

    def _exclusive(self, key: bytes) -> Flow[Repaired]:
        outcome: Repaired = yield Exclusive(key, self._repair.repair(key))
        return outcome
