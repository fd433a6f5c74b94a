"""Which copy is newest: versions, and the history that says what a copy contains (protocol section 1).

A version is never compared by size to decide freshness. "Stale" is always "does not cover",
because a claim without data can be larger than a write that it has never seen.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

OWNER_BYTES = 8
SERVER_ID_BYTES = 3
PACKED_BYTES = 16
MAX_HISTORY = 16
"""Epochs that a history remembers. Older ones count as covered: see :func:`covers`."""

_PACK = struct.Struct(">I8sI")


class Version(NamedTuple):
    """One state of one session: ``(epoch, owner, seq)``. No number is ever used twice.

    ``owner`` is the 3-byte ID of the web server plus 5 random bytes, fresh for each claim.
    ``seq`` 0 is the claim itself and carries no change; every write raises it.
    """

    epoch: int
    owner: bytes
    seq: int

    def pack(self) -> bytes:
        """16 bytes, big-endian: epoch (4), owner (8), seq (4)."""
        return _PACK.pack(self.epoch, self.owner, self.seq)

    @classmethod
    def unpack(cls, raw: bytes) -> Version:
        """The reverse of :meth:`pack`; raises ``struct.error`` unless given exactly 16 bytes."""
        return cls(*_PACK.unpack(raw))

    def next_write(self) -> Version:
        return _new_version(Version, (self[0], self[1], self[2] + 1))

    @property
    def server_id(self) -> bytes:
        """Which web server owns this version: the address of its notices."""
        return self.owner[:SERVER_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.epoch}.{self.owner.hex()}.{self.seq}"


_new_version = tuple.__new__  # what the class itself would call

History = tuple[Version, ...]
"""For each epoch that wrote data, oldest first, the version of its last write."""


def newest_write(history: History) -> Version | None:
    """The newest data version that a copy with this history contains; ``None`` if nothing was written."""
    return history[-1] if history else None


def covers(history: History, version: Version | None) -> bool:
    """Whether a copy with this history contains the write ``version``.

    ``None`` (nothing was promised) is covered by everything. Epochs that a full history has
    forgotten count as covered: an honest browser that slept through 16 changes of owner must
    not be told that its session was rolled back.
    """
    if version is None:
        return True
    for last in reversed(history):
        if last.epoch == version.epoch:
            return last.owner == version.owner and last.seq >= version.seq
    return len(history) >= MAX_HISTORY and version.epoch < history[0].epoch


def holds(history: History, version: Version) -> bool:
    """Whether a copy with this history contains the write ``version`` for certain: forgotten epochs do not count."""
    return any(
        last.epoch == version.epoch and last.owner == version.owner and last.seq >= version.seq for last in history
    )


def with_write(history: History, version: Version) -> History:
    """The history after the data write ``version``; remembers the last ``MAX_HISTORY`` epochs."""
    if history and history[-1].epoch == version.epoch and history[-1].owner == version.owner:
        return (*history[:-1], version)
    return (*history, version)[-MAX_HISTORY:]
