"""Where TLS sessions are outside of this process: stores of items, on a thread of their own.

Handshakes happen in threads and on event loops of any kind, and OpenSSL's questions come in the middle of them. So one
thread of each process has an event loop with the links to the stores; a thread waits for it for as long as it may, an
event loop awaits it, and what is stored is handed over and not waited for: a session that could not be stored costs its
client a full handshake, no more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from coatcheck.seldom import Seldom
from coatcheck.take_once.port import TakeOnceStore, TakeOnceUnavailable
from coatcheck.take_once.rule import NEVER_STORED

T = TypeVar("T")

MAX_PUTS: Final = 1024
"""Sessions on their way to a store; one more is not stored."""
FIRST_CONNECT_S: Final = 1.0
"""How long a start waits for the first connection, so that the first handshakes are shared already."""
STOP_S: Final = 2.0

log: Final = logging.getLogger("coatcheck.tls")
seldom: Final = Seldom(log, time.monotonic)

_all: weakref.WeakSet[SessionRepository] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had open at the fork: its thread is not in this process, and its links are not ours."""


class SessionRepository:
    """The stores of one process; ``make_stores`` makes them anew in each, so that a fork shares nothing.

    Any thread may call it. ``tag_of`` names a store in session IDs.
    """

    def __init__(
        self,
        make_stores: Callable[[], Sequence[TakeOnceStore]],
        tag_of: Callable[[str], bytes],
        home: str | None = None,
    ) -> None:
        """``home``: the name of the only store where new items are put; the others are only asked."""
        self._make_stores = make_stores
        self._tag_of = tag_of
        self._home = home
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stores: dict[bytes, TakeOnceStore] = {}
        self._closed = False
        self._puts = 0
        self._turn = 0
        self.dropped = 0
        """Sessions that were not stored, because a store was away or behind."""
        _all.add(self)

    def start(self) -> None:
        """Begin, unless it has begun in this process; waits :data:`FIRST_CONNECT_S` at most for the stores."""
        with self._starting:
            if self._thread is not None or self._closed:
                return
            ready = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(ready,), name="coatcheck-tls", daemon=True)
            self._thread.start()
        ready.wait(FIRST_CONNECT_S)

    def place(self) -> bytes | None:
        """The tag of a store that can be reached, each in its turn; ``None`` if there is none."""
        if self._thread is None:
            self.start()
        stores = [each for each in self._stores.items() if self._home in (None, each[1].name)]
        self._turn += 1
        for at in range(len(stores)):
            tag, store = stores[(self._turn + at) % len(stores)]
            if store.reachable:
                return tag
        return None

    def put(self, tag: bytes, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> None:
        """Store an item; nobody waits, and it is not tried again."""
        loop, store = self._loop, self._stores.get(tag)
        if loop is None or store is None or self._puts >= MAX_PUTS:
            self.dropped += 1
            return
        self._puts += 1
        with contextlib.suppress(RuntimeError):  # it is being closed
            loop.call_soon_threadsafe(self._begin_put, store, key, item, life_ms, after)

    def take(self, tag: bytes, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        """Take an item from the store of this tag, and no other. For threads: waits ``limit_s`` at most.

        Raises :class:`TakeOnceUnavailable` if there was no answer in time.
        """
        asked = self._ask_take(tag, key, nonce)
        if asked is None:
            return None
        try:
            return asked.result(limit_s)
        except concurrent.futures.TimeoutError:
            asked.cancel()
            raise TakeOnceUnavailable(f"no answer within {limit_s:g} s") from None
        except concurrent.futures.CancelledError:
            raise TakeOnceUnavailable("closed") from None

    async def fetch(self, tag: bytes, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        """The same for event loops."""
        asked = self._ask_take(tag, key, nonce)
        if asked is None:
            return None
        try:
            return await asyncio.wait_for(asyncio.wrap_future(asked), limit_s)
        except TimeoutError:
            raise TakeOnceUnavailable(f"no answer within {limit_s:g} s") from None

    def close(self) -> None:
        """Release everything; nothing is shared by this process any more."""
        with self._starting:
            self._closed = True
            thread, loop = self._thread, self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None:
            thread.join(STOP_S)

    @property
    def storing(self) -> int:
        """Sessions on their way to a store."""
        return self._puts

    def status(self) -> dict[str, bool]:
        """Which stores answer, by name."""
        return {store.name: store.reachable for store in self._stores.values()}

    def _ask_take(self, tag: bytes, key: bytes, nonce: bytes) -> concurrent.futures.Future[bytes | None] | None:
        if self._thread is None:
            self.start()
        loop, store = self._loop, self._stores.get(tag)
        if loop is None or store is None:
            return None  # a store that is on no list of ours
        return _submit(loop, store.take(key, nonce))

    # On the thread

    def _run(self, ready: threading.Event) -> None:
        loop = _new_loop()
        stores = self._make_stores()
        try:
            loop.run_until_complete(_open_all(stores))
            self._stores = {self._tag_of(store.name): store for store in stores}
            self._loop = loop
            ready.set()
            if not self._closed:
                loop.run_forever()
            loop.run_until_complete(_close_all(stores))
        finally:
            self._loop = None
            loop.close()

    def _begin_put(self, store: TakeOnceStore, key: bytes, item: bytes, life_ms: int, after: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._put(store, key, item, life_ms, after))
        _putting.add(task)
        task.add_done_callback(_putting.discard)

    async def _put(self, store: TakeOnceStore, key: bytes, item: bytes, life_ms: int, after: bytes) -> None:
        try:
            if not await store.put(key, item, life_ms, after):
                self.dropped += 1
        except TakeOnceUnavailable as unavailable:
            self.dropped += 1
            seldom.warning("a TLS session could not be stored: %s", unavailable, kind="put")
        finally:
            self._puts -= 1

    def _after_fork(self) -> None:
        _inherited.append((self._loop, self._stores, self._thread))
        self._starting = threading.Lock()
        self._loop, self._thread, self._stores, self._puts = None, None, {}, 0


_putting: set[asyncio.Task[None]] = set()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: a take costs half the CPU time there."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _submit(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    try:
        return asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise TakeOnceUnavailable("closed") from None


async def _open_all(stores: Sequence[TakeOnceStore]) -> None:
    await asyncio.gather(*[store.open() for store in stores])


async def _close_all(stores: Sequence[TakeOnceStore]) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*[store.aclose() for store in stores], return_exceptions=True)


def _after_fork_in_child() -> None:
    for repository in list(_all):
        repository._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
