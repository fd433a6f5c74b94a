"""Repair in the background: who is repaired when, and how fast (protocol section 9, mission B9)."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
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


class RepairPace:
    """Work in the background goes as fast as the event loop has nothing else to do.

    After each piece of it everybody else has a turn, and it rests :attr:`RESTS` times as long as those turns took:
    alone it does not rest at all, and beside requests it takes a small share.
    """

    RESTS = 4.0
    UNNOTICED_S = 0.0003
    """Turns that are shorter are those of an idle event loop."""
    LONGEST_REST_S = 0.25

    def __init__(self) -> None:
        self._now = asyncio.get_running_loop().time

    async def let_others_go_first(self) -> None:
        began = self._now()
        await asyncio.sleep(0)  # whoever is ready now
        await asyncio.sleep(0)  # and whoever was heard from meanwhile
        taken = self._now() - began
        if taken > self.UNNOTICED_S:
            await asyncio.sleep(min(taken * self.RESTS, self.LONGEST_REST_S))


class BackgroundRepair:
    """Copies hosted sessions again when a session server is lost or back, then looks after sessions that
    nobody hosts, by scanning the session servers. Every step is paced.

    What needs repair is a set that puts and closes maintain (:meth:`Repair.known`). All hosted sessions are looked
    through after an alarm, and slowly all the time; both in slices of :attr:`SLICE_S`.
    """

    INTERVAL_S = 5.0
    """How often what is known to need repair is tried again, and between two slow looks through all."""
    SETTLE_S = 0.05
    """After an alarm: servers that fail together are taken together."""
    PARALLEL = 16
    """Repairs at once; after them, others go first."""
    SLICE_S = 0.001
    """For how long sessions are looked at (seconds) before others have a turn."""
    SLOWLY_S = 0.1
    """Between slices of the slow look through all: a hundredth of one core."""
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
        self._pace = RepairPace()
        self._outcomes: Counter[Repaired] = Counter()

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._mend()),
            asyncio.create_task(self._sweep()),
            asyncio.create_task(self._patrol()),
        ]

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
        """``total`` and ``done`` of the current or last rounds, and the outcomes since the start: each of them, also
        those that never were, for whoever watches them increase."""
        outcomes = {outcome.name.lower(): self._outcomes[outcome] for outcome in Repaired}
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
                await self._repair_those_of(self._repair.known())
                continue
            self._alarm.clear()
            await self._repair_those_of(self._repair.every())

    async def _patrol(self) -> None:
        """Look through all that is hosted, slowly: whatever a put has left undone unnoticed is found within minutes."""
        while True:
            async for needing in self._looked_at(self._repair.every()):
                self._copies.puts.unsettled.update(dict.fromkeys(needing))
                await asyncio.sleep(self.SLOWLY_S)
            await asyncio.sleep(self.INTERVAL_S)

    async def _looked_at(self, keys: Iterable[bytes]) -> AsyncIterator[list[bytes]]:
        """Of these keys those that need repair: slice by slice, each of :attr:`SLICE_S`."""
        needs, now = self._repair.needs, self._world.monotonic
        keys, more = iter(keys), True
        while more:
            until = now() + self.SLICE_S
            needing: list[bytes] = []
            more = False
            for key in keys:
                if needs(key):
                    needing.append(key)
                if now() >= until:
                    more = True
                    break
            yield needing
            await self._pace.let_others_go_first()

    async def _repair_those_of(self, keys: Iterable[bytes]) -> None:
        begun = False
        async for needing in self._looked_at(keys):
            if needing and not begun:
                begun = True
                self._hosted.begin(0)
            self._hosted.total += len(needing)
            await self._repair_all(self._hosted, needing)

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
            cursor, found = reply
            keys = self._repair.unknown(store.name, found)
            if keys:
                self._unhosted.begin(len(keys))
            await self._repair_all(self._unhosted, keys)
            await self._pace.let_others_go_first()  # a store in this process has answered at once

    async def _repair_all(self, progress: Round, keys: list[bytes]) -> None:
        for start in range(0, len(keys), self.PARALLEL):
            await asyncio.gather(*(self._repair_one(progress, key) for key in keys[start : start + self.PARALLEL]))
            await self._pace.let_others_go_first()

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
