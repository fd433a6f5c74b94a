"""The put rule: whether a session server takes what it is offered, and who must hear of it (protocol section 3).

This is its one definition. It is stated on stored bytes, so that a session server need decode nothing: it compares a
few bytes at fixed places of the clear header and never looks further: ``format, flags, epoch (4), owner (8), seq (4),
count``. All numbers are big-endian, so comparing bytes compares numbers. The table in memory (the session server and
the memory store), SQLite and the simulated session server run it. Valkey and Redis run a script
(:mod:`coatcheck.stores.valkey_scripts`), which ``tests/contracts`` holds to it by generated puts.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import (
    FLAG_CLOSED,
    FLAGS,
    FORMAT,
    HEAD_BYTES,
    MAX_ENTRY_BYTES,
    Entry,
    encode_header,
)
from coatcheck.replication.notice import Notice
from coatcheck.replication.version import MAX_HISTORY, PACKED_BYTES, SERVER_ID_BYTES, Version

NOTHING_SEEN: Final = b""
"""What a writer sends as ``seen`` when it saw nothing stored on this server."""

MIN_LIFE_MS: Final = 1
MAX_LIFE_MS: Final = 10 * 366 * 24 * 3600 * 1000
"""No entry lives longer: ten years. Also keeps every sum of clock and life within 64 bits."""

_FLAGS = 1
_OWNER_END = 14
_VERSION_END = 18
_ONE = b"\x00\x00\x00\x01"


class Verdict(Enum):
    """What becomes of a put."""

    REFUSED = "refused"
    ACCEPTED = "accepted"
    ACCEPTED_NOTIFY = "accepted, and the old owner must hear of it"


def judge(stored: bytes | None, seen: bytes, new: bytes) -> Verdict:
    """Decide the put of ``new`` over ``stored`` by a writer that saw ``seen`` on this very server.

    ``stored`` and ``new`` are well-formed entries (or at least their first 18 bytes); ``stored`` is ``None`` if there
    is none, or if its life is over. ``seen`` is a packed version or :data:`NOTHING_SEEN`.
    """
    willed = new[_FLAGS] == FLAG_CLOSED
    if stored is None:
        return Verdict.ACCEPTED if not seen or willed else Verdict.REFUSED
    if stored[_FLAGS:_VERSION_END] == new[_FLAGS:_VERSION_END]:
        return Verdict.ACCEPTED  # the exact repeat of a retry
    if stored[_FLAGS] == FLAG_CLOSED:
        return Verdict.REFUSED  # a tombstone that somebody willed is never overwritten
    if willed:
        return Verdict.ACCEPTED_NOTIFY
    live = not stored[_FLAGS] and not new[_FLAGS]
    same_owner = stored[2:_OWNER_END] == new[2:_OWNER_END]
    if stored[2:_VERSION_END] == seen:
        return Verdict.ACCEPTED if live and same_owner else Verdict.ACCEPTED_NOTIFY
    if live and same_owner and stored[_OWNER_END:_VERSION_END] < new[_OWNER_END:_VERSION_END]:
        return Verdict.ACCEPTED  # a later write of the claim that is stored
    return Verdict.REFUSED


def judge_entries(stored: Entry | None, seen: Version | None, new: Entry) -> Verdict:
    """:func:`judge`, for who holds entries decoded."""
    return judge(stored.header() if stored is not None else None, pack_seen(seen), new.header())


def check_entry(raw: bytes) -> None:
    """Raise :class:`CorruptEntry` unless ``raw`` has the shape of an entry; its payload is not looked at."""
    size = len(raw)
    if size < HEAD_BYTES or size > MAX_ENTRY_BYTES:
        raise CorruptEntry(f"an entry of {size} bytes")
    count = raw[HEAD_BYTES - 1]
    if raw[0] != FORMAT or raw[_FLAGS] not in FLAGS or count > MAX_HISTORY or size < HEAD_BYTES + count * PACKED_BYTES:
        raise CorruptEntry("not an entry of this format")


def is_tombstone(raw: bytes) -> bool:
    return bool(raw[_FLAGS])


def payload_at(raw: bytes) -> int:
    """Where an entry's sealed payload begins."""
    return HEAD_BYTES + raw[HEAD_BYTES - 1] * PACKED_BYTES


def is_first_write(raw: bytes) -> bool:
    """Whether this is the first state of a session that nobody has taken over: it exists nowhere else for longer."""
    return raw[2:6] == _ONE and raw[_OWNER_END:_VERSION_END] == _ONE and not raw[_FLAGS]


def servers_to_notify(verdict: Verdict, stored: bytes | None, others: bytes) -> list[bytes]:
    """The IDs of the web servers that must hear of a put: the owner of the stored entry that it replaced, and the
    ``others`` that its writer named, in one string: they own what it saw elsewhere, and may own what was here."""
    if verdict is Verdict.REFUSED:
        return []
    first = [stored[6 : 6 + SERVER_ID_BYTES]] if verdict is Verdict.ACCEPTED_NOTIFY and stored is not None else []
    named = [others[at : at + SERVER_ID_BYTES] for at in range(0, len(others), SERVER_ID_BYTES)]
    return list(dict.fromkeys(first + named))


def notice_of(key: bytes, new: bytes) -> bytes:
    """The encoded notice that ``new`` has replaced what the old owner had."""
    return Notice(key, Version.unpack(new[2:_VERSION_END]), bool(new[_FLAGS])).encode()


def bounded_life_ms(expires_in_ms: int) -> int:
    """The life that a store gives to a put: at least one millisecond, at most :data:`MAX_LIFE_MS`."""
    return min(max(expires_in_ms, MIN_LIFE_MS), MAX_LIFE_MS)


_last_encoded: tuple[Entry | None, bytes] = (None, b"")
"""One entry goes to several stores, one right after the other."""


def encode_for_put(new: Entry) -> bytes:
    """The bytes to store; raises :class:`CorruptEntry` with a clear text if no store would take them."""
    global _last_encoded
    last, raw = _last_encoded
    if last is new:
        return raw
    raw = encode_header(new.version, new.history, new.closed, new.provisional) + new.payload
    if len(raw) > MAX_ENTRY_BYTES:
        raise CorruptEntry(f"an entry of {len(raw)} bytes; a session server takes at most {MAX_ENTRY_BYTES}")
    if len(new.history) > MAX_HISTORY:
        raise CorruptEntry(f"a history of {len(new.history)} epochs; at most {MAX_HISTORY} are kept")
    _last_encoded = (new, raw)
    return raw


def pack_seen(seen: Version | None) -> bytes:
    return seen if seen is not None else NOTHING_SEEN
