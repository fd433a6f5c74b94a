"""Runs flows with real stores on an asyncio event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from os import urandom
from random import random
from typing import Any, TypeVar

from coatcheck.events import Event, Observer
from coatcheck.replication.effects import (
    Accepted,
    Acknowledge,
    Detach,
    Exclusive,
    Flow,
    Get,
    GetReply,
    Gotten,
    Pause,
    Put,
    PutReply,
    Rest,
    Settled,
    Tell,
)
from coatcheck.stores.port import Store

T = TypeVar("T")


class RandomPool:
    """Bytes from the operating system, fetched 8 KiB at a time: a system call for each nonce would show."""

    SIZE = 8192

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        at = self._at
        end = at + count
        if end > len(self._bytes):
            if count > self.SIZE:
                return urandom(count)
            self._bytes, at, end = urandom(self.SIZE), 0, count
        self._at = end
        return self._bytes[at:end]


class World:
    """The surroundings of a real web server: its clocks, its random numbers, its links."""

    def __init__(self, stores: Mapping[str, Store], observer: Observer) -> None:
        self._stores = stores
        self.random_bytes = RandomPool()
        self.monotonic = time.monotonic
        self.jitter = random
        self._observer = observer

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def reachable(self, server: str) -> bool:
        return self._stores[server].reachable

    def report(self, event: Event) -> None:
        self._observer(event)


class _Collector:
    """Counts the replies of one put; one future for all servers."""

    __slots__ = ("accepted", "enough", "future", "missing", "replies", "whole")

    def __init__(self, servers: int, enough: int, loop: asyncio.AbstractEventLoop) -> None:
        self.replies: dict[str, PutReply] = {}
        self.missing = servers
        self.enough = enough
        self.accepted = 0
        self.future: asyncio.Future[None] = loop.create_future()
        self.whole: asyncio.Future[None] | None = None

    def take(self, server: str) -> Callable[[PutReply], None]:
        def on_reply(reply: PutReply) -> None:
            self.replies[server] = reply
            self.missing -= 1
            self.accepted += type(reply) is Accepted
            if (not self.missing or self.accepted >= self.enough) and not self.future.done():
                self.future.set_result(None)
            if not self.missing and self.whole is not None and not self.whole.done():
                self.whole.set_result(None)

        return on_reply


class AsyncioDriver:
    """Answers the effects of flows; see :mod:`coatcheck.replication.effects`."""

    MAX_DETACHED = 10_000

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores
        self._loop = asyncio.get_running_loop()
        self._locks: dict[bytes, _Turn] = {}
        self._detached: set[asyncio.Task[Any]] = set()

    async def run(self, flow: Flow[T], acknowledge: asyncio.Future[Any] | None = None) -> T:
        """Run a flow to its end. A cancelled run closes the flow, which then forgets what was not acknowledged."""
        answer: Any = None
        failure: BaseException | None = None
        try:
            while True:
                try:
                    effect = flow.send(answer) if failure is None else flow.throw(failure)
                except StopIteration as end:
                    result: T = end.value
                    return result
                failure = None
                try:
                    answer = await self._answer(effect, acknowledge)
                except Exception as error:  # noqa: BLE001 - it belongs to the flow, which re-raises what it does not expect
                    failure = error
        finally:
            flow.close()

    async def _answer(self, effect: Any, acknowledge: asyncio.Future[Any] | None) -> Any:
        kind = type(effect)
        if kind is Put:
            return await self._put(effect)
        if kind is Exclusive:
            return await self._exclusive(effect, acknowledge)
        if kind is Get:
            return await self._get(effect)
        if kind is Pause:
            return await asyncio.sleep(effect.seconds)
        if kind is Rest:
            return await self._rest(effect.settled)
        if kind is Acknowledge:
            if acknowledge is not None and not acknowledge.done():
                acknowledge.set_result(effect.result)
            return None
        if kind is Detach:
            return await self._detach(effect)
        assert kind is Tell
        return self.tell(effect)

    async def _put(self, effect: Put) -> Settled:
        sent_at = time.monotonic()
        collector = _Collector(len(effect.seen), effect.enough or len(effect.seen) + 1, self._loop)
        for server, seen in effect.seen.items():
            self._stores[server].put(effect.key, seen, effect.entry, collector.take(server))
        await collector.future
        return Settled(sent_at, collector.replies, collector if collector.missing else None)

    async def _rest(self, settled: Settled) -> Settled:
        collector: _Collector = settled.pending
        if collector.missing:
            collector.whole = self._loop.create_future()
            await collector.whole
        settled.pending = None
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

    async def _exclusive(self, effect: Exclusive, acknowledge: asyncio.Future[Any] | None) -> Any:
        turn = self._locks.get(effect.key)
        if turn is None:
            turn = self._locks[effect.key] = _Turn()
        turn.waiting += 1
        try:
            async with turn.lock:
                return await self.run(effect.flow, acknowledge)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                self._locks.pop(effect.key, None)

    async def _detach(self, effect: Detach) -> Any:
        acknowledged: asyncio.Future[Any] = self._loop.create_future()
        if len(self._detached) >= self.MAX_DETACHED:
            return await self.run(effect.flow)
        task = self._loop.create_task(self.run(effect.flow, acknowledged))
        self._detached.add(task)

        def settle(done: asyncio.Task[Any]) -> None:
            self._detached.discard(done)
            if acknowledged.done():
                if not done.cancelled():
                    done.exception()
            elif done.cancelled():
                acknowledged.cancel()
            elif (error := done.exception()) is not None:
                acknowledged.set_exception(error)
            else:
                acknowledged.set_result(done.result())

        task.add_done_callback(settle)
        return await asyncio.shield(acknowledged)

    def tell(self, effect: Tell) -> None:
        """Publish through every session server that is reachable; at most once each."""
        for store in self._stores.values():
            if store.reachable:
                store.publish(effect.server_id, effect.message)

    async def settle(self, timeout_s: float) -> None:
        """Wait until early acknowledged writes are settled, at most ``timeout_s`` (for a graceful stop)."""
        if self._detached:
            await asyncio.wait(list(self._detached), timeout=timeout_s)


class _Turn:
    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0
