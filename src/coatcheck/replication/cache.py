"""The local cache of a web server: the sessions that it hosts (mission B2, protocol section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import History, Version, covers, newest_write

NO_VERSION = bytes(16)


class Copy:
    """One hosted session: what was acknowledged, where, and until when it may be served without asking.

    ``body``: the record, opened, as bytes. ``record``: the same, decoded by the layer above, or ``None``.
    ``seen``: per session server, the version last seen there. ``lease_until``, ``alone_at`` and
    ``no_lease_before`` are monotonic seconds: until when no session server need be asked; from when on no
    other web server can be serving this session from its own cache; and before which a put must not
    have begun to earn a lease (a notice came). ``moved``: another web server said that it hosts the session now.
    ``spent``: its next number may have been used, so only a new claim may go on from it. ``contact``: up to which
    change of contact with a session server ``seen`` is good (:meth:`coatcheck.replication.puts.Puts.forget_lost`).
    """

    __slots__ = (
        "alone_at", "body", "contact", "expires_at", "history", "key", "lease_until", "moved", "no_lease_before",
        "promised", "record", "review_at", "seen", "shown_at", "spent", "under_replicated", "version",
    )  # fmt: skip

    def __init__(self, key: bytes, version: Version, history: History, body: bytes) -> None:
        self.key = key
        self.seen: dict[str, Version | None] = {}
        self.lease_until = 0.0
        self.alone_at = 0.0
        self.no_lease_before = 0.0
        self.expires_at = 0
        self.under_replicated = False
        self.moved = False
        self.spent = False
        self.contact = 0
        self.replace(version, history, body)

    def replace(self, version: Version, history: History, body: bytes) -> None:
        """Take over a new acknowledged state."""
        self.version = version
        self.history = history
        self.body = body
        self.record: Any = None
        self.review_at = 0
        """Unix ms, kept by the layer above: until then a plain read of the session calls for nothing."""
        self.shown_at = 0
        """Unix ms, kept by the layer above: when the newest token was last shown here; 0 if that is not known."""
        written = newest_write(history)
        self.promised = written.pack() if written else NO_VERSION
        """The data version that tokens carry, packed."""

    def wrote(self, version: Version, history: History, body: bytes, expires_at: int) -> None:
        """Take over a write of the own, acknowledged: nobody else has shown that the session is theirs."""
        self.version = version
        self.history = history
        self.body = body
        self.record = None
        self.review_at = 0
        self.expires_at = expires_at
        self.promised = version.pack()
        self.moved = False

    def without_lease(self) -> Copy:
        """Another one with the same state, to be changed on its own; no put has earned it a lease."""
        other: Copy = object.__new__(Copy)
        for name in Copy.__slots__:
            setattr(other, name, getattr(self, name))
        other.seen = self.seen.copy()
        other.lease_until = 0.0
        return other

    def covers(self, promised: bytes) -> bool:
        """Whether this copy has everything that a browser was told about (packed version of its token)."""
        if promised == self.promised or promised == NO_VERSION:
            return True
        return covers(self.history, Version.unpack(promised))

    def as_entry(self) -> Entry:
        """This copy as a candidate among stored entries; it carries no payload."""
        return Entry(self.version, self.history, False, 0, b"")


class Cache:
    """The copies by key, bounded; and the keys known to be closed, bounded."""

    MAX_SPENT = 1024

    def __init__(self, max_sessions: int, max_closed: int = 65_536) -> None:
        self.max_sessions = max_sessions
        self.max_closed = max_closed
        self._copies: dict[bytes, Copy] = {}
        self._closed: dict[bytes, None] = {}
        self._spent: dict[bytes, Copy] = {}
        self._moved: set[bytes] = set()
        self.get = self._copies.get
        self.is_closed: Callable[[bytes], bool] = self._closed.__contains__
        self.on_closed: Callable[[bytes], None] = lambda key: None
        """Told of each key that :meth:`mark_closed` is given."""

    def __len__(self) -> int:
        return len(self._copies)

    def __iter__(self) -> Iterator[Copy]:
        return iter(list(self._copies.values()))

    def keys(self) -> list[bytes]:
        """Those of all copies, as of now."""
        return list(self._copies)

    def hosted(self) -> int:
        """How many of the sessions are hosted here, as far as is known; copies of those that moved are kept a while.

        Takes as long as there are copies of sessions that moved.
        """
        self._moved = {key for key in self._moved if (copy := self._copies.get(key)) is not None and copy.moved}
        return len(self._copies) - len(self._moved)

    def note_moved(self, copy: Copy) -> None:
        """Another web server says that it hosts the session now."""
        copy.moved = True
        if len(self._moved) >= self.max_sessions:
            self._moved.clear()
            self._moved.update(other.key for other in self._copies.values() if other.moved)
        self._moved.add(copy.key)

    def add(self, copy: Copy) -> None:
        """Keep a copy as the most recent one; the oldest one goes when the cache is full.

        Dropping a copy loses nothing: the session servers have it. A closed session never comes back.
        """
        key, copies = copy.key, self._copies
        if key in self._closed:
            return
        if key in copies:
            del copies[key]
        elif self._spent:
            self._spent.pop(key, None)
        while len(copies) >= self.max_sessions:
            copies.pop(next(iter(copies)))
        copies[key] = copy

    def drop(self, key: bytes) -> None:
        self._copies.pop(key, None)
        if self._spent:
            self._spent.pop(key, None)

    def set_aside(self, copy: Copy) -> None:
        """Host a session no more whose last write was not acknowledged, but remember its acknowledged state: session
        servers may have lost it, and nobody else knows of it."""
        self.drop(copy.key)
        if copy.key in self._closed:
            return
        copy.spent = True
        copy.lease_until = 0.0
        if len(self._spent) >= self.MAX_SPENT:
            self._spent.pop(next(iter(self._spent)))
        self._spent[copy.key] = copy

    def candidate(self, key: bytes) -> Copy | None:
        """What is known here of a session, hosted or set aside: one more copy to compare those stored with."""
        return self._copies.get(key) or self._spent.get(key)

    def mark_closed(self, key: bytes) -> None:
        """Remember that a session is closed; a tombstone is for ever, so this needs no lease."""
        self.drop(key)
        self._closed.pop(key, None)
        if len(self._closed) >= self.max_closed:
            self._closed.pop(next(iter(self._closed)))
        self._closed[key] = None
        self.on_closed(key)

    def drop_expired(self, now_ms: int, limit: int) -> int:
        """Look at up to ``limit`` of the longest unrenewed copies and drop the expired; returns how many."""
        expired = [
            copy.key for copy, _ in zip(self._copies.values(), range(limit), strict=False) if copy.expires_at <= now_ms
        ]
        for key in expired:
            del self._copies[key]
        return len(expired)
