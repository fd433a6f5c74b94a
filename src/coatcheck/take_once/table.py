"""The table of items in memory: the take-once rule, expiry and a bound; no clock and no sockets of its own.

Apart from the table of entries, because nothing that is done with entries may be done with items: no put rule,
no tombstone, no scan, no repair, no hand-over.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from coatcheck.errors import CoatcheckError
from coatcheck.take_once.rule import (
    ItemRow,
    Taking,
    check_agreement,
    check_key,
    check_nonce,
    check_put,
    decides,
    judge_take,
    may_put,
    purged,
    taken,
)

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024
"""A hundred thousand TLS sessions."""
ROW_OVERHEAD_BYTES: Final = 400
"""What an item takes beside its bytes (measured: row, key, dict and queue), for the memory bound."""
SWEEP_PER_CALL: Final = 4
MAX_AGREEMENTS: Final = 1024


class ItemsFull(CoatcheckError):
    """The bound is reached: nothing that can still be taken is dropped, so new items are refused."""


class ItemTable:
    """Items by key. Each call is atomic because it runs to its end in one thread.

    ``now_ms`` is any clock that never goes back. Every put looks at the oldest few rows and drops what has expired.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        """What all rows take, by the memory bound's reckoning."""
        self._rows: dict[bytes, ItemRow] = {}
        self._queue: deque[bytes] = deque()
        """The keys, in the order in which they are looked at."""
        self._agreed: dict[bytes, tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, now_ms: int) -> bool:
        """See :class:`coatcheck.take_once.port.TakeOnceStore`; raises :class:`ItemsFull`."""
        check_put(key, item, life_ms, after)
        self.sweep(now_ms, SWEEP_PER_CALL)
        stored = self._live(key, now_ms)
        if not may_put(stored, after):
            return False
        grown = len(item) - len(stored.item) if stored is not None else len(item) + ROW_OVERHEAD_BYTES
        if grown > 0 and self.held_bytes + grown > self.max_bytes:
            raise ItemsFull(f"no room: {self.held_bytes} of {self.max_bytes} bytes")
        if key not in self._rows:
            self._queue.append(key)
        self._store(key, ItemRow(item, now_ms + life_ms))
        return True

    def take(self, key: bytes, nonce: bytes, now_ms: int) -> bytes | None:
        """See :class:`coatcheck.take_once.port.TakeOnceStore`."""
        check_key(key)
        check_nonce(nonce)
        stored = self._live(key, now_ms)
        taking = judge_take(stored, nonce, now_ms)
        if stored is None or taking is Taking.REFUSED:
            return None
        if taking is Taking.TAKES:
            self._store(key, taken(stored, nonce, now_ms))
        return stored.item

    def purge(self, key: bytes, now_ms: int) -> bool:
        """See :class:`coatcheck.take_once.port.TakeOnceStore`."""
        check_key(key)
        stored = self._live(key, now_ms)
        if stored is None:
            return False
        self._store(key, purged(stored))
        return True

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes, now_ms: int) -> bytes:
        """See :class:`coatcheck.take_once.port.TakeOnceStore`; raises :class:`ItemsFull`."""
        check_agreement(key, proposal, life_ms)
        for over in [one for one, (_, ends_at_ms) in self._agreed.items() if ends_at_ms <= now_ms]:
            del self._agreed[over]
        agreed = self._agreed.get(key)
        if decides(agreed[0] if agreed is not None else None, instead_of):
            if agreed is None and len(self._agreed) >= MAX_AGREEMENTS:
                raise ItemsFull(f"no room: {len(self._agreed)} agreements")
            self._agreed[key] = (proposal, now_ms + life_ms)
        return self._agreed[key][0]

    def sweep(self, now_ms: int, steps: int) -> None:
        """Look at the next few rows: drop what has expired, and contents whose taker had them long enough."""
        for _ in range(min(steps, len(self._queue))):
            key = self._queue.popleft()
            row = self._rows[key]
            if row.expires_at_ms <= now_ms:
                self.held_bytes -= _cost(row)
                del self._rows[key]
                continue
            if row.taker and row.item and row.kept_until_ms <= now_ms:
                self._store(key, ItemRow(b"", row.expires_at_ms, row.taker))
            self._queue.append(key)

    def _live(self, key: bytes, now_ms: int) -> ItemRow | None:
        row = self._rows.get(key)
        return row if row is not None and row.expires_at_ms > now_ms else None

    def _store(self, key: bytes, row: ItemRow) -> None:
        before = self._rows.get(key)
        self.held_bytes += _cost(row) - (_cost(before) if before is not None else 0)
        self._rows[key] = row


def _cost(row: ItemRow) -> int:
    return len(row.item) + ROW_OVERHEAD_BYTES
