"""Runs flows with real stores on an asyncio event loop."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import random
from typing import Any, TypeVar

from coatcheck.drivers.turns import Turns
from coatcheck.errors import CoatcheckError
from coatcheck.events import Event, EventKind, Observer
from coatcheck.host_clock import steady_clock, wall_ms
from coatcheck.replication.effects import (
    Acknowledge,
    Detach,
    Exclusive,
    Flow,
    FreshKeys,
    Get,
    GetReply,
    Gotten,
    Pause,
    Put,
    PutItem,
    PutReply,
    Rest,
    Settled,
    TakeItem,
    Tell,
    Together,
    Unreachable,
)
from coatcheck.replication.farm_clock import FarmClock
from coatcheck.stores.port import Store
from coatcheck.take_once.port import TakeOnceStore, TakeOnceUnavailable

T = TypeVar("T")


class RandomPool:
    """Bytes from the operating system, fetched 8 KiB at a time: a system call for each nonce would show."""

    SIZE = 8192

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0
        _pools.add(self)

    def forget(self) -> None:
        """Hand out nothing of what was fetched."""
        self._bytes = b""

    def __call__(self, count: int) -> bytes:
        at = self._at
        end = at + count
        if end > len(self._bytes):
            if count > self.SIZE:
                return os.urandom(count)
            self._bytes, at, end = os.urandom(self.SIZE), 0, count
        self._at = end
        return self._bytes[at:end]


_pools: weakref.WeakSet[RandomPool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in _pools:
        pool.forget()


# Two processes that go on with the same pool would draw the same keys and nonces.
os.register_at_fork(after_in_child=_forget_all)


class World:
    """The surroundings of a real web server: its clocks, its random numbers, its links."""

    def __init__(self, stores: Mapping[str, Store], observer: Observer) -> None:
        self._stores = stores
        self._reachable = dict.fromkeys(stores, False)
        self.reachable = self._reachable.__getitem__
        self.random_bytes = RandomPool()
        self.monotonic = time.monotonic
        self.jitter = random
        self._observer = observer
        self.clock = FarmClock(steady_clock(), wall_ms, report=self._report_clock)
        self.now_ms = self.clock.now_ms

    def watch_clocks(self) -> None:
        """Call before the stores are opened: from then on :attr:`clock` hears them."""
        self.clock.expect(sum(store.watch_clock(self._on_time) for store in self._stores.values()))

    def _on_time(self, server: str, round_trip_s: float, unix_ms: float) -> None:
        self.clock.heard(server, round_trip_s, unix_ms)

    def _report_clock(self, name: str, deviation_ms: int) -> None:
        whose = f"the clock of session server {name}" if name else "this host's clock"
        if deviation_ms:
            self.report(
                Event(EventKind.CLOCK_DEVIATES, detail=f"{whose} is {deviation_ms / 1000:+.1f} s off the farm's")
            )
        else:
            self.report(Event(EventKind.CLOCK_AGREES, detail=f"{whose} agrees with the farm's again"))

    def take(self, stores: Mapping[str, Store]) -> None:
        """From here on, the links are these; none is known to be reachable yet."""
        self._stores = stores
        self._reachable.clear()
        self._reachable.update(dict.fromkeys(stores, False))

    def watch_stores(self) -> None:
        """Call when the stores are open: from then on :attr:`reachable` is one look into a dict."""
        for name, store in self._stores.items():
            self._reachable[name] = store.reachable
            store.watch(self._reachable.__setitem__)

    def report(self, event: Event) -> None:
        self._observer(event)


async def _as_they_are() -> bool:
    return True


class _Acknowledgement(Settled, kw_only=True):
    """What a put is answered with, and who waits for it: one object and one future for all servers."""

    missing: int
    enough: int
    future: asyncio.Future[None]
    whole: asyncio.Future[None] | None = None

    def take(self, server: str, reply: PutReply) -> None:
        self.replies[server] = reply
        self.missing -= 1
        if not self.missing:
            self.pending = None
            if self.whole is not None and not self.whole.done():
                self.whole.set_result(None)
        elif not self.enough or self.accepted() < self.enough:
            return
        if not self.future.done():
            self.future.set_result(None)


class AsyncioDriver:
    """Answers the effects of flows; see :mod:`coatcheck.replication.effects`."""

    MAX_DETACHED = 10_000

    def __init__(
        self,
        stores: Mapping[str, Store],
        observer: Observer = lambda event: None,
        fresh_keys: Callable[[], Awaitable[bool]] | None = None,
        items: Mapping[str, TakeOnceStore] | None = None,
    ) -> None:
        """``fresh_keys`` answers :class:`FreshKeys`; without it there is nobody to ask. ``items``: by the name of a
        session server, its items that may be taken once; none, where nobody asks."""
        self._items = items or {}
        self._loop = asyncio.get_running_loop()
        self._fresh_keys = fresh_keys or _as_they_are
        self._stores = stores
        self._observer = observer
        self._puts = {name: store.put for name, store in stores.items()}
        self._turns = Turns(self._loop)
        self._detached: set[asyncio.Task[Any]] = set()

    async def run(self, work: Flow[T] | Exclusive, acknowledge: asyncio.Future[Any] | None = None) -> T:
        """Run a flow to its end, an :class:`Exclusive` one when it is its turn. A cancelled run closes the flow, which
        then forgets what was not acknowledged."""
        key: bytes | None = None
        if isinstance(work, Exclusive):
            flow, key = work.flow, work.key
            if not self._turns.take(key):
                await self._turns.wait(key)
        else:
            flow = work
        answer: Any = None
        failure: Exception | None = None
        try:
            while True:
                effect = flow.send(answer) if failure is None else flow.throw(failure)
                failure = None
                try:
                    if type(effect) is Put:
                        answer = self._put(effect)
                        await answer.future
                    else:
                        answer = await self._answer(effect, acknowledge)
                except Exception as error:  # noqa: BLE001 - the flow re-raises what it does not expect
                    failure = error
        except StopIteration as end:
            result: T = end.value
            return result
        except BaseException:
            flow.close()  # a cancelled run: the innermost flow first, for that has a run of its own
            raise
        finally:
            if key is not None:
                self._turns.give(key)

    def _answer(self, effect: Any, acknowledge: asyncio.Future[Any] | None) -> Awaitable[Any]:
        kind = type(effect)
        if kind is Get:
            return self._get(effect)
        if kind is Exclusive:
            return self.run(effect, acknowledge)
        if kind is Pause:
            return asyncio.sleep(effect.seconds)
        if kind is Rest:
            return self._rest(effect.settled)
        if kind is Detach:
            return self._detach(effect)
        if kind is FreshKeys:
            return self._fresh_keys()
        if kind is Together:
            return self._together(effect)
        if kind is PutItem or kind is TakeItem:
            return self._item(effect)
        return self._at_once(effect, acknowledge)

    async def _at_once(self, effect: Any, acknowledge: asyncio.Future[Any] | None) -> None:
        if type(effect) is Tell:
            self.tell(effect)
            return
        assert type(effect) is Acknowledge
        if acknowledge is not None and not acknowledge.done():
            acknowledge.set_result(effect.result)

    def _put(self, effect: Put) -> _Acknowledgement:
        seen = effect.seen
        servers = len(seen)
        future: asyncio.Future[None] = self._loop.create_future()
        acknowledgement = _Acknowledgement(
            time.monotonic(), {}, missing=servers, enough=effect.enough or 0, future=future
        )
        acknowledgement.pending = acknowledgement
        key, entry, take, puts = effect.key, effect.entry, acknowledgement.take, self._puts
        if effect.notify:
            for server in seen:
                puts[server](key, seen[server], entry, partial(take, server), effect.notify)
            return acknowledgement
        for server in seen:
            puts[server](key, seen[server], entry, partial(take, server))
        return acknowledgement

    async def _rest(self, settled: Settled) -> Settled:
        acknowledgement: _Acknowledgement = settled.pending
        if acknowledgement.missing:
            acknowledgement.whole = self._loop.create_future()
            await acknowledgement.whole
        return settled

    async def _get(self, effect: Get) -> Gotten:
        sent_at = time.monotonic()
        replies: dict[str, GetReply] = {}
        future: asyncio.Future[None] = self._loop.create_future()

        def take(server: str) -> Callable[[GetReply], None]:
            def on_reply(reply: GetReply) -> None:
                replies[server] = reply
                if len(replies) == len(effect.servers) and not future.done():
                    future.set_result(None)

            return on_reply

        for server in effect.servers:
            self._stores[server].get(effect.key, take(server))
        await future
        return Gotten(sent_at, replies)

    async def _item(self, effect: PutItem | TakeItem) -> bool | bytes | Unreachable | None:
        store = self._items.get(effect.server)
        if store is None:
            return Unreachable("no such session server")
        try:
            if type(effect) is PutItem:
                return await store.put(effect.key, effect.item, effect.life_ms)
            assert type(effect) is TakeItem
            return await store.take(effect.key, effect.nonce)
        except TakeOnceUnavailable as unavailable:
            return Unreachable(str(unavailable))

    async def _detach(self, effect: Detach) -> Any:
        acknowledged: asyncio.Future[Any] = self._loop.create_future()
        if len(self._detached) >= self.MAX_DETACHED:
            return await self.run(effect.flow)
        task = self._loop.create_task(self.run(effect.flow, acknowledged))
        self._detached.add(task)

        def settle(done: asyncio.Task[Any]) -> None:
            self._detached.discard(done)
            if acknowledged.done():
                if not done.cancelled() and (lost := done.exception()) is not None:
                    # The browser has its answer already: only the operators can still be told.
                    self._observer(Event(EventKind.EARLY_WRITE_LOST, detail=f"{type(lost).__name__}: {lost}"))
            elif done.cancelled():
                acknowledged.cancel()
            elif (error := done.exception()) is not None:
                acknowledged.set_exception(error)
            else:
                acknowledged.set_result(done.result())

        task.add_done_callback(settle)
        return await asyncio.shield(acknowledged)

    async def _together(self, effect: Together) -> list[Any]:
        tasks = [self._loop.create_task(self.run(flow)) for flow in effect.flows]
        try:
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for one in ended:
            if isinstance(one, BaseException) and not isinstance(one, CoatcheckError):
                raise one
        return ended

    def tell(self, effect: Tell) -> None:
        """Publish through every session server that is reachable; at most once each."""
        for store in self._stores.values():
            if store.reachable:
                store.publish(effect.server_id, effect.message)

    async def settle(self, timeout_s: float) -> None:
        """Wait until early acknowledged writes are settled, at most ``timeout_s`` (for a graceful stop)."""
        if self._detached:
            await asyncio.wait(list(self._detached), timeout=timeout_s)
