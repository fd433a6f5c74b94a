"""Tombstones in memory, packed: what remembers that a session was closed costs a fraction of what a session does.

A tombstone is small, lives as long as the longest token, and is seldom asked for; so it gets no object, no dict entry
and no place in a wheel of its own. Tombstones whose keys begin alike share one bytes object; a change writes it anew.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from coatcheck.replication.entry import KEY_BYTES

BUCKETS: Final = 65_536
"""The keys are spread by their first 16 bits: with a million tombstones a bucket has 15."""
TOMBSTONE_OVERHEAD_BYTES: Final = 72
"""What a tombstone takes beside its bytes (measured: head and its share of a bucket), for the memory bound."""

_HEAD = struct.Struct(f">{KEY_BYTES}sQI")
"""Key, when it expires in milliseconds, and how many bytes follow."""

Tombstone = tuple[bytes, bytes, int]
"""Key, stored bytes, and when it expires, in milliseconds."""


class Tombstones:
    """The tombstone of each closed session: its bytes as they were put, and when it expires.

    Times are in milliseconds on the caller's clock. What has expired is still there until it is swept.
    """

    def __init__(self) -> None:
        self._buckets: list[bytes] = [b""] * BUCKETS
        self._hand = 0
        self.count = 0
        self.held_bytes = 0
        """What they take, by the memory bound's reckoning."""

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """The stored bytes and when they expire."""
        bucket = self._buckets[_place(key)]
        if key not in bucket:
            return None
        return next(((raw, expires_at_ms) for other, raw, expires_at_ms in _unpack(bucket) if other == key), None)

    def add(self, key: bytes, raw: bytes, expires_at_ms: int) -> None:
        """Keep a tombstone; of this key there must be none."""
        place = _place(key)
        self._buckets[place] += _HEAD.pack(key, expires_at_ms, len(raw)) + raw
        self.count += 1
        self.held_bytes += cost(raw)

    def drop(self, key: bytes) -> None:
        """Forget the tombstone of this key, if there is one."""
        place = _place(key)
        self._keep(place, [one for one in _unpack(self._buckets[place]) if one[0] != key])

    def in_places(self, first: int, end: int) -> Iterator[Tombstone]:
        """All whose keys begin with 16 bits from ``first`` to before ``end``."""
        for bucket in filter(None, self._buckets[first:end]):
            yield from _unpack(bucket)

    def sweep(self, now_ms: int, buckets: int) -> None:
        """Look at so many buckets, or at those that are left of a round, and drop what has expired there."""
        first, end = self._hand, min(self._hand + buckets, BUCKETS)
        self._hand = end % BUCKETS
        if any(self._buckets[first:end]):
            for place in range(first, end):
                if bucket := self._buckets[place]:
                    self._keep(place, [one for one in _unpack(bucket) if one[2] > now_ms])

    def _keep(self, place: int, kept: list[Tombstone]) -> None:
        """These are all that is left of a bucket."""
        before = list(_unpack(self._buckets[place]))
        if len(kept) == len(before):
            return
        self._buckets[place] = b"".join([_HEAD.pack(key, at_ms, len(raw)) + raw for key, raw, at_ms in kept])
        self.count += len(kept) - len(before)
        self.held_bytes += sum(cost(raw) for _, raw, _ in kept) - sum(cost(raw) for _, raw, _ in before)


def cost(raw: bytes) -> int:
    """What a tombstone of these bytes takes of the memory bound."""
    return len(raw) + TOMBSTONE_OVERHEAD_BYTES


def _place(key: bytes) -> int:
    return key[0] << 8 | key[1]


def _unpack(bucket: bytes) -> Iterator[Tombstone]:
    at = 0
    while at < len(bucket):
        key, expires_at_ms, size = _HEAD.unpack_from(bucket, at)
        at += _HEAD.size
        yield key, bucket[at : at + size], expires_at_ms
        at += size
