"""The local cache of a web server: the sessions that it hosts (mission B2, protocol section 4)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy as shallow_copy
from itertools import chain, islice
from typing import Any, ClassVar, Final

from coatcheck.events import public_id
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import History, Version, as_version, covers
from coatcheck.value import Lean

NO_VERSION: Final = bytes(16)

MAX_GROUPS: Final = 4096
"""Groups of session servers of which there is one object each, for all sessions that are stored there."""

_groups: dict[frozenset[str], frozenset[str]] = {}


def _group(servers: Iterable[str]) -> frozenset[str]:
    group = frozenset(servers)
    if len(_groups) < MAX_GROUPS:
        return _groups.setdefault(group, group)
    return _groups.get(group, group)


class Copy(Lean):
    """One hosted session: what was acknowledged, where, and until when it may be served without asking.

    A web server has as many of these as sessions, so each is small: nothing in it is held twice, and what most
    sessions have in common is shared. Nothing in it leads back to it, and nothing in it is an object that the garbage
    collector visits, once that has seen it. For that, ``packed`` and ``packed_history`` are plain bytes;
    :attr:`version` and :attr:`history` are the same.

    ``body``: the record, opened, as bytes. ``record``: the same, decoded by the layer above, or ``None``
    (:meth:`Cache.keep_decoded`). ``marks``: what that layer has noted since, and stores with the next write.
    ``promised``: the data version that tokens carry, packed. ``lease_until``, ``alone_at`` and
    ``no_lease_before`` are monotonic seconds: until when no session server need be asked; from when on no
    other web server can be serving this session from its own cache; and before which a put must not
    have begun to earn a lease (a notice came). ``moved``: another web server said that it hosts the session now.
    ``spent``: its next number may have been used, so only a new claim may go on from it. ``contact``: up to which
    change of contact with a session server what was seen there is good
    (:meth:`coatcheck.replication.puts.Puts.forget_lost`). ``expires_at``, ``review_at`` and ``shown_at`` are Unix ms;
    the last two are kept by the layer above: until when a plain read of the session calls for nothing, and when the
    newest token was last shown here (0 if that is not known).
    """

    key: bytes
    packed: bytes
    packed_history: tuple[bytes, ...]
    body: bytes
    promised: bytes = NO_VERSION
    record: Any = None
    marks: bytes | None = None
    expires_at: int = 0
    review_at: int = 0
    shown_at: int = 0
    lease_until: float = 0.0
    alone_at: float = 0.0
    no_lease_before: float = 0.0
    contact: int = 0
    moved: bool = False
    spent: bool = False
    shown_by: frozenset[str] | dict[str, bytes] = frozenset()
    """The session servers on which :attr:`_held` was seen; or, where they differ, what was seen on each. The same
    object until that changes."""
    _held: bytes | None = None

    def __post_init__(self) -> None:
        self.packed = bytes(self.packed)
        self.packed_history = tuple(map(bytes, self.packed_history))
        self.promised = self.packed_history[-1] if self.packed_history else NO_VERSION

    def __repr__(self) -> str:
        return f"<Copy of session {public_id(self.key)} at {self.version}>"

    @property
    def version(self) -> Version:
        return as_version(self.packed)

    @property
    def history(self) -> History:
        return tuple(map(as_version, self.packed_history))

    # -- what its session servers were last seen to hold --------------------------------------------

    @property
    def seen(self) -> dict[str, Version]:
        """Per session server, the version last seen there; those that had nothing, or were not asked, are missing."""
        return {server: as_version(version) for server, version in self._seen().items()}

    def _seen(self) -> dict[str, bytes]:
        holders, held = self.shown_by, self._held
        if type(holders) is dict:
            return holders
        return dict.fromkeys(holders, held) if held is not None else {}

    def seen_on(self, server: str) -> Version | None:
        """The version last seen on this session server; ``None``: nothing, as far as is known."""
        holders = self.shown_by
        held = holders.get(server) if type(holders) is dict else self._held if server in holders else None
        return None if held is None else as_version(held)

    def is_on(self, server: str) -> bool:
        """Whether this very version was last seen on this session server."""
        holders = self.shown_by
        if type(holders) is dict:
            return holders.get(server) == self.packed
        return server in holders and self._held == self.packed

    def seen_on_each(self, servers: tuple[str, ...]) -> dict[str, Version | None]:
        """:meth:`seen_on` of several, in their order."""
        holders, held = self.shown_by, self._held
        if held is not None and type(holders) is frozenset and holders.issuperset(servers):
            return dict.fromkeys(servers, as_version(held))
        return {server: self.seen_on(server) for server in servers}

    def saw(self, shown: Mapping[str, Version | None]) -> None:
        """These session servers hold these versions now; ``None``: nothing."""
        merged: dict[str, bytes | None] = {**self._seen(), **shown}
        own = self.packed
        seen = {
            server: own if version == own else bytes(version)
            for server, version in merged.items()
            if version is not None
        }
        versions = set(seen.values())
        if len(versions) > 1:
            self.shown_by, self._held = seen, None
        else:
            self.shown_by, self._held = _group(seen), next(iter(seen.values()), None)

    def stored_on(self, servers: Collection[str], version: Version) -> None:
        """All of these session servers hold this version now."""
        if self.shown_by == frozenset(servers):
            self._held = self.packed if version == self.packed else bytes(version)
        else:
            self.saw(dict.fromkeys(servers, version))

    # -- its states -----------------------------------------------------------------------------------

    def wrote(self, version: Version, history: History, body: bytes, expires_at: int) -> None:
        """Take over a write of the own, acknowledged: nobody else has shown that the session is theirs."""
        held = self._held
        own = held if held is not None and held == version else bytes(version)
        self.packed = self.promised = own
        self.packed_history = (*map(bytes, history[:-1]), own)
        self.body = bytes(memoryview(body))  # an encoder hands out its buffer, which is a third larger
        self.record = self.marks = None
        self.review_at = 0
        self.expires_at = expires_at

    def without_lease(self) -> Copy:
        """Another one with the same state, to be changed on its own; no put has earned it a lease."""
        other = shallow_copy(self)
        other.lease_until = 0.0
        other.moved = False
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

    MAX_SPENT: ClassVar = 1024
    MAX_DECODED: ClassVar = 4096
    """Records that are held decoded too: those of the sessions that were used last. Decoding one more takes a
    microsecond, and as much memory as the bytes."""
    SHARD_SESSIONS: ClassVar = 4096
    """So many sessions, on average, share one of the dicts that hold them, where 256 dicts are enough for that: a dict
    grows in one go, which takes 27 ms for half a million sessions, and as long as there are entries to be skipped its
    oldest one is slow to find."""

    def __init__(self, max_sessions: int, max_closed: int = 65_536) -> None:
        self.max_sessions = max_sessions
        self.max_closed = max_closed
        shards = 1
        while shards < 256 and shards * self.SHARD_SESSIONS < max_sessions:
            shards *= 2
        self._shards: tuple[dict[bytes, Copy], ...] = tuple({} for _ in range(shards))
        self._mask = shards - 1
        self._count = 0
        self._moved = 0
        self._closed: dict[bytes, None] = {}
        self._spent: dict[bytes, Copy] = {}
        self._decoded: list[tuple[Copy, Any] | None] = [None] * self.MAX_DECODED
        self._decoded_first = 0
        self.is_closed: Callable[[bytes], bool] = self._closed.__contains__
        self.on_closed: Callable[[bytes], None] = lambda key: None
        """Told of each key that :meth:`mark_closed` is given."""

    def get(self, key: bytes) -> Copy | None:
        """The hosted copy of a session; keys are random numbers, so their last bytes spread them evenly."""
        return self._shards[key[-1] & self._mask].get(key)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Copy]:
        return chain.from_iterable(list(shard.values()) for shard in self._shards)

    def keys(self) -> Iterator[bytes]:
        """Those of all copies; the cache may change meanwhile, and then it may have some of that or not."""
        return chain.from_iterable(map(list, self._shards))

    def hosted(self) -> int:
        """How many of the sessions are hosted here, as far as is known; copies of those that moved are kept a while."""
        return self._count - self._moved

    def note_moved(self, copy: Copy) -> None:
        """Another web server says that it hosts the session now."""
        if not copy.moved:
            self._moved += self.get(copy.key) is copy
            copy.moved = True

    def note_mine(self, copy: Copy) -> None:
        """The session servers, or a write that they took, show that this web server hosts the session."""
        if copy.moved:
            self._moved -= self.get(copy.key) is copy
            copy.moved = False

    def add(self, copy: Copy) -> None:
        """Keep a copy as the most recent one; when the cache is full one of the oldest goes.

        Dropping a copy loses nothing: the session servers have it. A closed session never comes back.
        """
        key = copy.key
        if key in self._closed:
            return
        shard = self._shards[key[-1] & self._mask]
        if key in shard:
            self._moved -= shard[key].moved
            del shard[key]
        else:
            if self._spent:
                self._spent.pop(key, None)
            while self._count >= self.max_sessions:
                self._drop_oldest(shard)
            self._count += 1
        self._moved += copy.moved
        shard[key] = copy

    def _drop_oldest(self, shard: dict[bytes, Copy]) -> None:
        """Drop the copy in this shard that was not renewed for longest; in another one, if it has none."""
        if not shard:
            shard = max(self._shards, key=len)
        self._take(shard, next(iter(shard)))

    def _take(self, shard: dict[bytes, Copy], key: bytes) -> None:
        copy = shard.pop(key, None)
        if copy is not None:
            self._count -= 1
            self._moved -= copy.moved

    def keep_decoded(self, copy: Copy, record: Any) -> None:
        """Let a copy have its record decoded, in the place of the one that was decoded first: of that the bytes are
        left, and the marks: they say the same."""
        place = self._decoded_first
        former = self._decoded[place]
        if former is not None and former[0].record is former[1]:
            former[0].record = None
        copy.record = record
        self._decoded[place] = copy, record
        self._decoded_first = (place + 1) % self.MAX_DECODED

    def drop(self, key: bytes) -> None:
        self._take(self._shards[key[-1] & self._mask], key)
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

    def clear(self) -> None:
        """Host nothing, and forget what was set aside; what is closed stays closed."""
        for shard in self._shards:
            shard.clear()
        self._count = self._moved = 0
        self._spent.clear()

    def candidate(self, key: bytes) -> Copy | None:
        """What is known here of a session, hosted or set aside: one more copy to compare those stored with."""
        return self.get(key) or self._spent.get(key)

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
        before = self._count
        each = -(-limit // len(self._shards))
        for shard in self._shards:
            for key in [copy.key for copy in islice(shard.values(), each) if copy.expires_at <= now_ms]:
                self._take(shard, key)
        return before - self._count
