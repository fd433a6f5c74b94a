"""Where TLS sessions are outside of this process, and who waits for them.

Handshakes happen in threads and on event loops, and OpenSSL's questions come in the middle of them. A thread asks the
store itself and waits for as long as it may. An event loop that fetches ahead has links of its own to the stores, and
nobody waits in it; one that does not fetch ahead asks nobody. What is stored is sent and not waited for: a session that
could not be stored costs its client a full handshake, no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Sequence
from typing import Final

from coatcheck.errors import CoatcheckError
from coatcheck.seldom import Seldom
from coatcheck.take_once.port import (
    TakeOnceForThreads,
    TakeOnceFull,
    TakeOncePlace,
    TakeOnceStore,
    TakeOnceUnavailable,
)
from coatcheck.take_once.rule import NEVER_STORED
from coatcheck.tls.breaker import Breaker

MAX_PUTS: Final = 1024
"""Sessions on their way from one event loop to a store; one more is not stored."""
CHECK_S: Final = 0.5
"""So long an operator's question whether a store answers waits for each."""

log: Final = logging.getLogger("coatcheck.tls")
seldom: Final = Seldom(log, time.monotonic)

_all: weakref.WeakSet[SessionRepository] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had open at the fork: its connections are not ours, not even to be closed."""


class SessionRepository:
    """The stores of one process; ``make_places`` makes them anew in each, so that a fork shares nothing.

    Any thread may call it. ``tag_of`` names a store in session IDs.
    """

    def __init__(
        self,
        make_places: Callable[[], Sequence[TakeOncePlace]],
        tag_of: Callable[[str], bytes],
        *,
        home: str | None = None,
        put_limit_s: float,
    ) -> None:
        """``home``: the name of the only store where new items are put; the others are only asked.
        ``put_limit_s``: how long a thread may take to send what it stores."""
        self._make_places = make_places
        self._tag_of = tag_of
        self._home = home
        self._put_limit_s = put_limit_s
        self._turn = 0
        self._dropped = 0
        self._loops: dict[asyncio.AbstractEventLoop, _AtLoop] = {}
        self._places: dict[bytes, TakeOncePlace] = {}
        self._ways: dict[bytes, _StoreForThreads] = {}
        self._homes: list[bytes] = []
        _all.add(self)

    def start(self) -> None:
        """Make the stores of this process; nothing is connected yet. Raises what ``make_places`` raises."""
        places = {self._tag_of(place.name): place for place in self._make_places()}
        self._places = places
        self._ways = {tag: _StoreForThreads(place.for_threads()) for tag, place in places.items()}
        self._homes = [tag for tag, place in places.items() if self._home in (None, place.name)]

    def place(self) -> bytes | None:
        """The tag of a store that can be reached, each in its turn; ``None`` if there is none."""
        running = _get_running_loop()
        at_loop = self._loops.get(running) if running is not None else None
        if running is not None and at_loop is None:
            seldom.warning("TLS sessions are not shared on this event loop: run it by coatcheck.tls.new_event_loop")
            return None
        now = time.monotonic()
        self._turn += 1
        for at in range(len(self._homes)):
            tag = self._homes[(self._turn + at) % len(self._homes)]
            if at_loop.stores[tag].reachable if at_loop is not None else self._ways[tag].would_let_pass(now):
                return tag
        return None

    def put(self, tag: bytes, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> None:
        """Store an item; nobody waits for what becomes of it, and it is not tried again."""
        running = _get_running_loop()
        if running is not None:
            at_loop = self._loops.get(running)
            if at_loop is None or tag not in at_loop.stores or len(at_loop.puts) >= MAX_PUTS:
                self._dropped += 1
            else:
                task = running.create_task(self._put(at_loop.stores[tag], key, item, life_ms, after))
                at_loop.puts.add(task)
                task.add_done_callback(at_loop.puts.discard)
            return
        way = self._ways.get(tag)
        began = time.monotonic()
        if way is None or not way.lets_pass(began):
            self._dropped += 1
            return
        try:
            way.store.hand_over(key, item, life_ms, after, self._put_limit_s)
        except TakeOnceUnavailable as unavailable:
            way.failed(unavailable, began)
            self._not_stored(unavailable)

    def take(self, tag: bytes, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        """Take an item from the store of this tag, and no other. For threads: waits ``limit_s`` at most.

        Raises :class:`TakeOnceUnavailable` if there was no answer in time, or it was not asked because there was none
        before.
        """
        way = self._ways.get(tag)
        if way is None:
            return None  # a store that is on no list of ours
        began = time.monotonic()
        if not way.lets_pass(began):
            raise TakeOnceUnavailable(f"{way.store.name}: it did not answer before, and is not asked for a while")
        try:
            item = way.store.take(key, nonce, limit_s)
        except TakeOnceUnavailable as unavailable:
            way.failed(unavailable, began)
            raise
        way.succeeded()
        return item

    async def fetch(self, tag: bytes, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        """The same on an event loop that has called :meth:`open_here`."""
        at_loop = self._loops.get(asyncio.get_running_loop())
        if at_loop is None:
            raise TakeOnceUnavailable("closed")
        store = at_loop.stores.get(tag)
        if store is None:
            return None
        try:
            async with asyncio.timeout(limit_s):
                return await store.take(key, nonce)
        except TimeoutError:
            raise TakeOnceUnavailable(f"{store.name}: no answer within {limit_s:g} s") from None

    async def open_here(self) -> None:
        """Let the running loop reach the stores, once more; ends when each has been tried once."""
        self._forget_closed_loops()
        loop = asyncio.get_running_loop()
        at_loop = self._loops.get(loop)
        if at_loop is None:
            at_loop = self._loops[loop] = _AtLoop({tag: place.for_a_loop() for tag, place in self._places.items()})
            at_loop.opening = loop.create_task(_open_all(list(at_loop.stores.values())))
        at_loop.users += 1
        try:
            await asyncio.shield(at_loop.opening)
        except BaseException:
            await self.close_here()
            raise

    def _forget_closed_loops(self) -> None:
        """Those that ended without having closed their servers; what they had open went with them."""
        for loop in [loop for loop in self._loops if loop.is_closed()]:
            self._loops.pop(loop, None)

    async def close_here(self) -> None:
        """As often as :meth:`open_here`: after the last time this loop has no links any more."""
        loop = asyncio.get_running_loop()
        at_loop = self._loops.get(loop)
        if at_loop is None:
            return
        at_loop.users -= 1
        if at_loop.users:
            return
        if at_loop.puts:
            await asyncio.wait(set(at_loop.puts))
        if not at_loop.users and self._loops.pop(loop, None) is not None:
            await asyncio.gather(*[store.aclose() for store in at_loop.stores.values()], return_exceptions=True)

    def close(self) -> None:
        """Nothing is shared by the threads of this process any more; loops end with their servers."""
        ways, self._ways, self._homes = self._ways, {}, []
        for way in ways.values():
            way.store.close()

    @property
    def storing(self) -> int:
        """Sessions that a store has not acknowledged yet."""
        self._forget_closed_loops()
        on_loops = sum(len(at_loop.puts) for at_loop in list(self._loops.values()))
        return on_loops + sum(way.store.settle()[0] for way in list(self._ways.values()))

    @property
    def dropped(self) -> int:
        """Sessions that were not stored, because a store was away, full or behind."""
        return self._dropped + sum(way.store.settle()[1] for way in list(self._ways.values()))

    def status(self) -> dict[str, bool]:
        """Which stores answer, by name. In a thread of a server that has no loops this asks them."""
        self._forget_closed_loops()
        loops = list(self._loops.values())
        if loops:
            return {
                place.name: all(at_loop.stores[tag].reachable for at_loop in loops)
                for tag, place in self._places.items()
            }
        return {way.store.name: way.check() for way in list(self._ways.values())}

    async def _put(self, store: TakeOnceStore, key: bytes, item: bytes, life_ms: int, after: bytes) -> None:
        try:
            if not await store.put(key, item, life_ms, after):
                self._dropped += 1
        except TakeOnceUnavailable as unavailable:
            self._not_stored(unavailable)

    def _after_fork(self) -> None:
        if not self._places:
            return
        _inherited.append((self._loops, self._ways, self._places))
        self._loops, self._places, self._ways, self._homes = {}, {}, {}, []
        try:
            self.start()
        except CoatcheckError as wrong:
            log.warning("this process shares no TLS sessions: %s", wrong)

    def _not_stored(self, why: TakeOnceUnavailable) -> None:
        self._dropped += 1
        seldom.warning("a TLS session could not be stored: %s", why, kind="put")


class _StoreForThreads:
    """A store for threads, and whether it is asked at all just now."""

    def __init__(self, store: TakeOnceForThreads) -> None:
        self.store = store
        self._breaker = Breaker()
        self._lock = threading.Lock()

    def lets_pass(self, now: float) -> bool:
        with self._lock:
            return self._breaker.lets_pass(now)

    def would_let_pass(self, now: float) -> bool:
        with self._lock:
            return self._breaker.would_let_pass(now)

    def failed(self, why: TakeOnceUnavailable, began: float) -> None:
        """A full store has answered."""
        with self._lock:
            if isinstance(why, TakeOnceFull):
                self._breaker.succeeded()
            else:
                self._breaker.failed(time.monotonic(), began)

    def succeeded(self) -> None:
        with self._lock:
            self._breaker.succeeded()

    def check(self) -> bool:
        """Whether it answers; on an event loop, whether it would be asked."""
        if _get_running_loop() is not None:
            return self.would_let_pass(time.monotonic())
        answers = self.store.check(CHECK_S)
        if answers:
            self.succeeded()
        return answers


class _AtLoop:
    """The stores as one event loop has them."""

    def __init__(self, stores: dict[bytes, TakeOnceStore]) -> None:
        self.stores = stores
        self.users = 0
        self.puts: set[asyncio.Task[None]] = set()
        self.opening: asyncio.Future[None]


async def _open_all(stores: Sequence[TakeOnceStore]) -> None:
    for wrong in await asyncio.gather(*[store.open() for store in stores], return_exceptions=True):
        if isinstance(wrong, BaseException):
            log.error("a store of TLS sessions cannot be opened: %r", wrong)


def _after_fork_in_child() -> None:
    for repository in list(_all):
        repository._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
