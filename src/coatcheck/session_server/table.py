"""The table of entries in memory: the put rule, lazy expiry and notices; no clock and no sockets of its own.

:class:`coatcheck.stores.memory.MemoryStore` and :class:`coatcheck.session_server.server.SessionServer`
both are thin shells around it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.replication.entry import KEY_BYTES, decode_entry
from coatcheck.replication.put_rule import (
    Verdict,
    bounded_life_ms,
    check_entry,
    is_first_write,
    is_tombstone,
    judge,
    notice_of,
    servers_to_notify,
)
from coatcheck.replication.resolution import resolve
from coatcheck.session_server import tombstones

SHARDS: Final = 4096
"""The keys are spread by their first 12 bits, so that a scan needs no snapshot: its cursor is a shard."""
PLACES_PER_SHARD: Final = tombstones.BUCKETS // SHARDS
SHARDS_PER_SCAN: Final = 256
"""A scan looks at so many shards in one go, however few live keys are in them: a millisecond."""
SLOT_MS: Final = 1024
"""Expired sessions that nobody asks for are dropped at most this much later, plus the sweeper's period."""
STEPS_PER_BUCKET: Final = 8
"""A sweep of so many steps looks at one bucket of tombstones: an expired one is gone within two minutes."""
ROW_OVERHEAD_BYTES: Final = 320
"""What a session takes beside its bytes (measured: row, key, dict and slot), for the memory bound; a tombstone takes
:data:`coatcheck.session_server.tombstones.TOMBSTONE_OVERHEAD_BYTES`."""

DEFAULT_MAX_BYTES: Final = 1024 * 1024 * 1024
DEFAULT_MAX_ENTRIES: Final = 2_000_000
NEWCOMERS_SHARE: Final = 0.75
"""Of both bounds, what new sessions may fill. The rest is for those that exist: their changes, their copies that come
from another session server, and what remembers that they were closed."""

Publish = Callable[[bytes, bytes], object]
Stored = tuple[bytes, int]
"""The stored bytes and the life that is left, in milliseconds."""


class TableFull(CoatcheckError):
    """A bound is reached: nothing is evicted, so new entries are refused; the message says which bound."""


class _Row(msgspec.Struct, gc=False):
    raw: bytes
    expires_at_ms: int
    slot: int


class EntryTable:
    """The newest accepted entry of each key, as bytes.

    Each call is atomic because it runs to its end in one thread. ``now_ms`` is any clock that never goes
    back. Each session waits in one slot of a wheel; a put that lengthens a life does not move it, the sweep
    does so when it comes across. Tombstones are packed, and wait in none.
    """

    def __init__(self, publish: Publish, max_bytes: int, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        self._shards: list[dict[bytes, _Row]] = [{} for _ in range(SHARDS)]
        self._used = bytearray(SHARDS)
        """1 for each shard that may have something: a scan passes over the others without a look."""
        self._slots: dict[int, set[bytes]] = {}
        self._slot_order: list[int] = []
        self._publish = publish
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self._tombstones = tombstones.Tombstones()
        self._sessions = 0
        self._session_bytes = 0

    @property
    def entries(self) -> int:
        return self._sessions + self._tombstones.count

    @property
    def tombstones(self) -> int:
        return self._tombstones.count

    @property
    def held_bytes(self) -> int:
        """What all entries take, by the memory bound's reckoning."""
        return self._session_bytes + self._tombstones.held_bytes

    def get(self, key: bytes, now_ms: int) -> Stored | None:
        """The stored bytes and the life left; ``None`` if nothing is stored or it has expired."""
        row = self._shard(key).get(key)
        if row is not None:
            if row.expires_at_ms > now_ms:
                return row.raw, row.expires_at_ms - now_ms
            self._drop(key, row)
        elif (tombstone := self._tombstones.get(key)) is not None:
            raw, expires_at_ms = tombstone
            if expires_at_ms > now_ms:
                return raw, expires_at_ms - now_ms
            self._tombstones.drop(key)
        return None

    def put(self, key: bytes, seen: bytes, expires_in_ms: int, new: bytes, now_ms: int, notify: bytes = b"") -> Verdict:
        """Offer ``new``; protocol section 3. ``notify``: the IDs of further web servers that must hear of it.

        Raises :class:`coatcheck.errors.CorruptEntry` if ``new``, or what is stored, is no entry, and
        :class:`TableFull`; then nothing has changed.
        """
        check_entry(new)
        stored = self._stored(key, now_ms)
        if stored is not None:
            check_entry(stored)
        verdict = judge(stored, seen, new)
        if verdict is not Verdict.REFUSED:
            newcomer = stored is None and is_first_write(new)
            self._store(key, stored, new, now_ms + bounded_life_ms(expires_in_ms), newcomer=newcomer)
            if notify or verdict is Verdict.ACCEPTED_NOTIFY:
                for server_id in servers_to_notify(verdict, stored, notify):
                    self._publish(server_id, notice_of(key, new))
        return verdict

    def scan(self, cursor: int, limit: int, now_ms: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: the end) and about ``limit`` keys, or fewer: always whole shards."""
        keys: list[bytes] = []
        at = self._used.find(1, max(cursor, 0))
        looked = 0
        while at >= 0 and len(keys) < limit and looked < SHARDS_PER_SCAN:
            sessions = self._shards[at]
            closed = list(self._tombstones.in_places(at * PLACES_PER_SHARD, (at + 1) * PLACES_PER_SHARD))
            self._used[at] = bool(sessions or closed)
            keys.extend([key for key, row in sessions.items() if row.expires_at_ms > now_ms])
            keys.extend([key for key, _, expires_at_ms in closed if expires_at_ms > now_ms])
            looked += 1
            at = self._used.find(1, at + 1)
        return max(at, 0), keys

    def sweep(self, now_ms: int, steps: int) -> int:
        """Drop sessions that expired at least a slot ago; answers how many it looked at, ``steps`` at most.

        Of the tombstones, which live long, it looks at the next few buckets.
        """
        self._tombstones.sweep(now_ms, steps // STEPS_PER_BUCKET)
        looked = 0
        while looked < steps and self._slot_order and self._slot_order[0] * SLOT_MS <= now_ms:
            slot = self._slot_order[0]
            keys = self._slots[slot]
            while keys and looked < steps:
                self._look(keys.pop(), slot, now_ms)
                looked += 1
            if not keys:
                heapq.heappop(self._slot_order)
                del self._slots[slot]
        return looked

    def hand_over(self, now_ms: int) -> Iterator[tuple[bytes, int, bytes]]:
        """Every live entry that a successor may have: key, life left in milliseconds, stored bytes.

        Nothing may be put meanwhile. Items that may be taken once are in a table of their own, and in no file.
        """
        for shard in self._shards:
            for key, row in shard.items():
                if row.expires_at_ms > now_ms:
                    yield key, row.expires_at_ms - now_ms, row.raw
        for key, raw, expires_at_ms in self._tombstones.in_places(0, tombstones.BUCKETS):
            if expires_at_ms > now_ms:
                yield key, expires_at_ms - now_ms, raw

    def take_over(self, key: bytes, left_ms: int, raw: bytes, now_ms: int) -> bool:
        """Keep an entry of a predecessor, unless what is stored here wins over it.

        Two predecessors may have held the same session; raises as :meth:`put` does.
        """
        check_entry(raw)
        stored = self._stored(key, now_ms)
        if stored is not None and not _wins(raw, stored):
            return False
        self._store(key, stored, raw, now_ms + bounded_life_ms(left_ms))
        return True

    def _shard(self, key: bytes) -> dict[bytes, _Row]:
        return self._shards[_place(key)]

    def _stored(self, key: bytes, now_ms: int) -> bytes | None:
        found = self.get(key, now_ms)
        return found[0] if found is not None else None

    @property
    def is_full(self) -> bool:
        """Whether the next new session would be refused, however small."""
        return self._lacks(ROW_OVERHEAD_BYTES, 1, NEWCOMERS_SHARE) != ""

    def _lacks(self, more_bytes: int, more_entries: int, share: float) -> str:
        """Which bound does not allow so much more, in words; empty if both do."""
        if self.held_bytes + more_bytes > int(self.max_bytes * share):
            return f"{self.held_bytes} of {self.max_bytes} bytes"
        if self.entries + more_entries > int(self.max_entries * share):
            return f"{self.entries} of {self.max_entries} entries"
        return ""

    def _check_room(self, stored: bytes | None, new: bytes, newcomer: bool) -> None:
        """Raise :class:`TableFull` unless there is room: most of it is for anyone, the rest for sessions that exist."""
        grown = _cost(new) - (_cost(stored) if stored is not None else 0)
        if stored is not None and (grown <= 0 or is_tombstone(new)):
            return  # a close is never refused where there is something to close
        share = NEWCOMERS_SHARE if newcomer else 1.0
        if lack := self._lacks(grown, int(stored is None), share):
            reserved = f"; {1 - share:.0%} is kept for sessions that exist" if newcomer else ""
            raise TableFull(f"no room: {lack}{reserved}")

    def _store(
        self, key: bytes, stored: bytes | None, new: bytes, expires_at_ms: int, *, newcomer: bool = False
    ) -> None:
        """``stored`` is what is there now."""
        self._check_room(stored, new, newcomer)
        self._used[_place(key)] = True
        row = self._shard(key).get(key)
        if is_tombstone(new):
            if row is not None:
                self._drop(key, row)
            elif stored is not None:
                self._tombstones.drop(key)
            self._tombstones.add(key, new, expires_at_ms)
            return
        slot = expires_at_ms // SLOT_MS + 1
        if row is None:
            if stored is not None:
                self._tombstones.drop(key)
            self._shard(key)[key] = _Row(new, expires_at_ms, slot)
            self._sessions += 1
            self._session_bytes += _cost(new)
            self._wait(key, slot)
        else:
            self._session_bytes += len(new) - len(row.raw)
            row.raw = new
            row.expires_at_ms = expires_at_ms
            if slot < row.slot:
                row.slot = slot
                self._wait(key, slot)

    def _wait(self, key: bytes, slot: int) -> None:
        keys = self._slots.get(slot)
        if keys is None:
            keys = self._slots[slot] = set()
            heapq.heappush(self._slot_order, slot)
        keys.add(key)

    def _leave(self, key: bytes, slot: int) -> None:
        """What was closed or has expired waits no longer."""
        keys = self._slots.get(slot)
        if keys is None:
            return
        keys.discard(key)
        if not keys:  # an emptied set keeps its memory as well
            self._slots[slot] = set()

    def _look(self, key: bytes, slot: int, now_ms: int) -> None:
        row = self._shard(key).get(key)
        if row is None or row.slot != slot:
            return  # dropped, or waiting in an earlier slot since
        if row.expires_at_ms <= now_ms:
            self._drop(key, row)
        else:
            row.slot = row.expires_at_ms // SLOT_MS + 1
            self._wait(key, row.slot)

    def _drop(self, key: bytes, row: _Row) -> None:
        shard = self._shard(key)
        del shard[key]
        if not shard:  # an emptied dict keeps its memory; a new one returns it
            self._shards[_place(key)] = {}
        self._leave(key, row.slot)
        self._sessions -= 1
        self._session_bytes -= _cost(row.raw)


def _place(key: bytes) -> int:
    """Which shard a key is in."""
    return key[0] << 4 | key[1] >> 4


def _cost(raw: bytes) -> int:
    """What an entry takes of the memory bound."""
    return tombstones.cost(raw) if is_tombstone(raw) else len(raw) + ROW_OVERHEAD_BYTES


def _wins(new: bytes, stored: bytes) -> bool:
    entry = decode_entry(new, 1)
    found = resolve([decode_entry(stored, 1), entry])
    return found is not None and found.newest is entry


def check_key(key: bytes) -> None:
    """Raise ``ValueError`` unless ``key`` is a session's key."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
