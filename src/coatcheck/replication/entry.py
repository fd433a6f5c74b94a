"""What a session server stores under a session's key (protocol section 3).

The rule by which it takes a put is in :mod:`coatcheck.replication.put_rule`; a session server must
get nothing else right.
"""

from __future__ import annotations

import struct
from typing import Protocol

import msgspec

from coatcheck.errors import CorruptEntry
from coatcheck.replication.version import MAX_HISTORY, PACKED_BYTES, History, Version

KEY_BYTES = 16
FORMAT = 1
FLAG_CLOSED = 1
FLAG_PROVISIONAL = 2
FLAGS = frozenset({0, FLAG_CLOSED, FLAG_CLOSED | FLAG_PROVISIONAL})
"""All that an entry may be: live, a tombstone, or a provisional tombstone."""
WITHDRAWN_MS = 1
"""The life that is left to a copy that is withdrawn."""
MAX_ENTRY_BYTES = 1024 * 1024
"""A session larger than this is refused with a clear error, by web server and session server alike."""

_HEAD = struct.Struct(">BB16sB")
HEAD_BYTES = _HEAD.size
_HEAD_OF_ONE = struct.Struct(">BB16sB16s")
"""The same with the one epoch that most sessions know."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One copy of one session: a small clear header and a payload that only the farm can read.

    ``expires_in_ms`` counts on the store's clock from the moment that the entry is put; an entry
    that was read says how much of it is left, so that copying an entry never lengthens its life.

    ``closed``: a tombstone. ``provisional``: one that nobody willed (a time-out, a loss); it closes only what its
    history covers, and yields to a live entry with a write that it lacks (protocol section 6).
    """

    version: Version
    history: History
    closed: bool
    expires_in_ms: int
    payload: bytes
    provisional: bool = False

    def header(self) -> bytes:
        """The clear part, authenticated together with the payload."""
        return encode_header(self.version, self.history, self.closed, self.provisional)

    @property
    def final(self) -> bool:
        """Whether this is a tombstone that somebody willed: nothing is ever put over it."""
        return self.closed and not self.provisional

    def encode(self) -> bytes:
        """Header and payload: what is stored. The expiry travels beside it, as the store's own TTL."""
        return encode_header(self.version, self.history, self.closed, self.provisional) + self.payload


def encode_header(version: Version, history: History, closed: bool, provisional: bool = False) -> bytes:
    """``format, flags, version (16), count, count x version (16)``: 19 bytes plus 16 per epoch."""
    flags = (FLAG_CLOSED if closed else 0) | (FLAG_PROVISIONAL if provisional else 0)
    if len(history) == 1:
        return _HEAD_OF_ONE.pack(FORMAT, flags, version, 1, history[0])
    return b"".join((_HEAD.pack(FORMAT, flags, version, len(history)), *history))


def decode_entry(raw: bytes, expires_in_ms: int) -> Entry:
    """The reverse of :meth:`Entry.encode`. Raises :class:`CorruptEntry` on any malformed input."""
    if len(raw) < HEAD_BYTES or len(raw) > MAX_ENTRY_BYTES:
        raise CorruptEntry(f"an entry of {len(raw)} bytes")
    fmt, flags, version, count = _HEAD.unpack_from(raw)
    body = HEAD_BYTES + count * PACKED_BYTES
    if fmt != FORMAT or flags not in FLAGS or count > MAX_HISTORY or len(raw) < body:
        raise CorruptEntry("not an entry of this format")
    history = tuple(Version.unpack(raw[at : at + PACKED_BYTES]) for at in range(HEAD_BYTES, body, PACKED_BYTES))
    closed, provisional = bool(flags & FLAG_CLOSED), bool(flags & FLAG_PROVISIONAL)
    return Entry(Version.unpack(version), history, closed, expires_in_ms, raw[body:], provisional)


class Sealer(Protocol):
    """Port: closes and opens payloads. Lossless, authenticated; the header is bound to the payload."""

    def seal(self, key: bytes, header: bytes, body: bytes) -> bytes: ...

    def knows(self, payload: bytes) -> bool:
        """Whether the key that sealed it is one of ours, as far as this web server was told."""
        ...

    def unseal(self, key: bytes, header: bytes, payload: bytes) -> bytes:
        """Raises :class:`CorruptEntry` if the payload was not sealed by the farm for this key and header."""
        ...
