"""Which copy is newest: versions, and the history that says what a copy contains (protocol section 1).

A version is never compared by size to decide freshness. "Stale" is always "does not cover",
because a claim without data can be larger than a write that it has never seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Final

OWNER_BYTES: Final = 8
SERVER_ID_BYTES: Final = 3
PACKED_BYTES: Final = 16
MAX_HISTORY: Final = 16
"""Epochs that a history remembers. Older ones count as covered: see :func:`covers`."""

_PACK = struct.Struct(">I8sI")
_CLAIM_AND_SEQ = struct.Struct(">12sI")
_EPOCH_END: Final = 4
_CLAIM_END: Final = 12


class Version(bytes):
    """One state of one session: ``(epoch, owner, seq)``. No number is ever used twice.

    ``owner`` is the 3-byte ID of the web server plus 5 random bytes, fresh for each claim.
    ``seq`` 0 is the claim itself and carries no change; every write raises it.

    It is what is stored and sent: 16 bytes, big-endian, epoch (4), owner (8), seq (4); it compares as its numbers do.
    """

    __slots__ = ()

    def __new__(cls, epoch: int, owner: bytes, seq: int) -> Version:
        return as_version(_PACK.pack(epoch, owner, seq))

    @staticmethod
    def unpack(raw: bytes) -> Version:
        """A version from its bytes; raises ``ValueError`` unless given exactly 16."""
        if len(raw) != PACKED_BYTES:
            raise ValueError(f"a version has {PACKED_BYTES} bytes, not {len(raw)}")
        return as_version(raw)

    @property
    def epoch(self) -> int:
        return int.from_bytes(self[:_EPOCH_END])

    @property
    def owner(self) -> bytes:
        return self[_EPOCH_END:_CLAIM_END]

    @property
    def seq(self) -> int:
        return int.from_bytes(self[_CLAIM_END:])

    @property
    def claim(self) -> bytes:
        """Epoch and owner: what all writes of one claim have in common."""
        return self[:_CLAIM_END]

    def next_write(self) -> Version:
        claim, seq = _CLAIM_AND_SEQ.unpack(self)
        return as_version(_CLAIM_AND_SEQ.pack(claim, seq + 1))

    @property
    def server_id(self) -> bytes:
        """Which web server owns this version: the address of its notices."""
        return self[_EPOCH_END : _EPOCH_END + SERVER_ID_BYTES]

    def __repr__(self) -> str:
        return f"<Version {self}>"

    def __str__(self) -> str:
        return f"{self.epoch}.{self.owner.hex()}.{self.seq}"


as_version: Callable[[bytes], Version] = partial(bytes.__new__, Version)
"""A version from bytes that are known to be one."""

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
            return last.claim == version.claim and last >= version
    return len(history) >= MAX_HISTORY and version.epoch < history[0].epoch


def holds(history: History, version: Version) -> bool:
    """Whether a copy with this history contains the write ``version`` for certain: forgotten epochs do not count."""
    return any(last.claim == version.claim and last >= version for last in history)


def next_write(version: bytes, history: tuple[bytes, ...]) -> tuple[Version, History]:
    """The version after ``version`` in the same claim, and the history with that write in it; both given as bytes."""
    claim, seq = _CLAIM_AND_SEQ.unpack(version)
    written = as_version(_CLAIM_AND_SEQ.pack(claim, seq + 1))
    if len(history) == 1 and history[0].startswith(claim):
        return written, (written,)
    return written, with_write(tuple(map(as_version, history)), written)


def with_write(history: History, version: Version) -> History:
    """The history after the data write ``version``; remembers the last ``MAX_HISTORY`` epochs."""
    if history and history[-1][:_CLAIM_END] == version[:_CLAIM_END]:
        return (*history[:-1], version)
    return (*history, version)[-MAX_HISTORY:]
