"""Items in this process's own memory: for tests, trials, a single server, and a server that keeps its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coatcheck.take_once.port import TakeOnceFull
from coatcheck.take_once.rule import NEVER_STORED, NOTHING
from coatcheck.take_once.table import ItemsFull, ItemTable


class SharedItemTable(ItemTable):
    """A table that several threads may use at once."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()  # a put sweeps

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, now_ms: int) -> bool:
        with self._lock:
            return super().put(key, item, life_ms, after, now_ms)

    def take(self, key: bytes, nonce: bytes, now_ms: int) -> bytes | None:
        with self._lock:
            return super().take(key, nonce, now_ms)

    def purge(self, key: bytes, now_ms: int) -> bool:
        with self._lock:
            return super().purge(key, now_ms)

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes, now_ms: int) -> bytes:
        with self._lock:
            return super().agree(key, proposal, life_ms, instead_of, now_ms)

    def sweep(self, now_ms: int, steps: int) -> None:
        with self._lock:
            super().sweep(now_ms, steps)


class MemoryItemsForThreads:
    """See :class:`coatcheck.take_once.port.TakeOnceForThreads`. ``clock`` answers seconds and never goes back."""

    def __init__(self, name: str, clock: Callable[[], float], table: SharedItemTable | None = None) -> None:
        """``table``: one that is there already, whose times are those of ``clock``."""
        self.name = name
        self._clock = clock
        self._refused = 0
        self._table = table if table is not None else SharedItemTable()

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        try:
            return self._table.put(key, item, life_ms, after, self._now_ms())
        except ItemsFull as full:
            raise TakeOnceFull(f"{self.name}: {full}") from None

    def hand_over(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> None:
        if not self.put(key, item, life_ms, after, limit_s):
            self._refused += 1

    def take(self, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        return self._table.take(key, nonce, self._now_ms())

    def purge(self, key: bytes, limit_s: float) -> bool:
        return self._table.purge(key, self._now_ms())

    def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float, instead_of: bytes = NOTHING) -> bytes:
        try:
            return self._table.agree(key, proposal, life_ms, instead_of, self._now_ms())
        except ItemsFull as full:
            raise TakeOnceFull(f"{self.name}: {full}") from None

    def check(self, limit_s: float) -> bool:
        return True

    def settle(self) -> tuple[int, int]:
        return 0, self._refused

    def close(self) -> None:
        """What is kept stays, for whoever shares this store."""

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class MemoryItems:
    """The same for an event loop: see :class:`coatcheck.take_once.port.TakeOnceStore`."""

    def __init__(self, items: MemoryItemsForThreads) -> None:
        self.name = items.name
        self._items = items

    @property
    def reachable(self) -> bool:
        return True

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        return self._items.put(key, item, life_ms, after, 0)

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        return self._items.take(key, nonce, 0)

    async def purge(self, key: bytes) -> bool:
        return self._items.purge(key, 0)

    async def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes = NOTHING) -> bytes:
        return self._items.agree(key, proposal, life_ms, 0, instead_of)

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def aclose(self) -> None:
        """What is kept stays."""
