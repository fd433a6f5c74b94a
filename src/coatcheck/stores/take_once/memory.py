"""Items in this process's own memory: for tests, trials and a single server."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import NEVER_STORED
from coatcheck.take_once.table import ItemsFull, ItemTable


class MemoryItems:
    """See :class:`coatcheck.take_once.port.TakeOnceStore`. ``clock`` answers seconds and never goes back.

    May be used from several threads and event loops at once.
    """

    def __init__(self, name: str, clock: Callable[[], float], table: ItemTable | None = None) -> None:
        """``table``: one that is there already, whose times are those of ``clock``."""
        self.name = name
        self._clock = clock
        self._table = table if table is not None else ItemTable()
        self._lock = threading.Lock()

    @property
    def reachable(self) -> bool:
        return True

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        with self._lock:
            try:
                return self._table.put(key, item, life_ms, after, self._now_ms())
            except ItemsFull as full:
                raise TakeOnceUnavailable(str(full)) from None

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        with self._lock:
            return self._table.take(key, nonce, self._now_ms())

    async def purge(self, key: bytes) -> bool:
        with self._lock:
            return self._table.purge(key, self._now_ms())

    async def open(self) -> None:
        """Nothing is to be opened."""

    async def aclose(self) -> None:
        """What is kept stays, for whoever shares this store."""

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
