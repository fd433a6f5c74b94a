"""The sessions of a user: listed, counted against a limit, closed (protocol section 11; ASVS 7.1.2, 7.4.2, 7.5.2).

Each user has an index, an entry that is replicated as sessions are, under a keyed hash of the user's name. Whoever
touches it claims it, writes it and lets it go: it is never hosted, and no lease of it counts. No flow here waits for a
session while it holds an index, so that no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import ClassVar

import msgspec

from coatcheck.errors import CoatcheckError, SessionClosed, SessionUnavailable, TooManySessions, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies, Gone
from coatcheck.replication.effects import Exclusive, Flow, Pause, Together
from coatcheck.replication.view import View
from coatcheck.sessions.policy import MINUTE_MS, SessionPolicy
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.sessions.record import Record, decode_record
from coatcheck.sessions.user_index import (
    MAX_ADDRESS,
    Listed,
    UserIndex,
    decode_index,
    device_of,
    encode_index,
    is_index,
    merge_bodies,
    shortened,
    union,
)

KeysOf = Callable[[str], Sequence[bytes]]
"""The keys under which a user's index may be: by each key of the ring, the primary's first."""
OnClosed = Callable[[bytes, Closed, "Record | CoatcheckError"], None]
"""Hears of each session that was open and is closed: its key, how, and what it was if that could be read."""


class UserSession(msgspec.Struct, frozen=True):
    """One session of a user. Times are Unix ms; ``last_seen_at`` is as exact as the session's own record.

    ``key`` opens nothing by itself, but closes: it is for operators. ``id`` is what logs call the session.
    """

    key: str
    id: str
    device: str
    address: str
    logged_in_at: int
    last_seen_at: int


class UserClosed(msgspec.Struct, frozen=True):
    """A close of many sessions: of so many no server serves any more, and so many are still ``closing``, because too
    few session servers could be told."""

    closed: int
    closing: int = 0

    @property
    def effective(self) -> bool:
        return not self.closing


class Renewal(msgspec.Struct, frozen=True):
    """A session that is used, and is to be listed for longer."""

    user: str
    listed: Listed
    provider: ProviderLogin | None = None
    ends_at: int = 0
    """It cannot live longer, however much it is used (Unix ms)."""


class UserIndexes:
    """The indexes, as one web server touches them."""

    RENEW_MS: ClassVar = 5 * MINUTE_MS
    """A session that is used is listed anew after so long, or half an idle timeout if that is less."""
    MAX_TRIES: ClassVar = 12
    """How often a rival may be faster before a login is refused."""
    MAX_NOTED: ClassVar = 65_536
    """Sessions of which it is remembered here when they were listed; one that is forgotten is listed again."""
    MAX_WAITING: ClassVar = 4_096
    """Renewals that wait for the background; one more waits for the session's next write."""
    AT_ONCE: ClassVar = 64
    """Sessions of a user that are looked at, or closed, beside each other."""

    def __init__(self, copies: Copies, policy: SessionPolicy, keys_of: KeysOf) -> None:
        self._copies = copies
        self._policy = policy
        self.keys_of = keys_of
        self._world = copies.world
        self.renew_ms = min(self.RENEW_MS, policy.idle_timeout_ms // 2)
        self._noted: dict[bytes, int] = {}
        self.waiting: dict[bytes, Renewal] = {}
        """What the background is to renew, by session key."""
        self.abandoned: dict[bytes, None] = {}
        """Sessions that were stored, but told nobody: the background is to close them."""
        self.on_waiting: Callable[[], None] = lambda: None
        self.all_closed_before = 0
        """When everybody's sessions were closed (Unix ms)."""
        self.renew_provider: Callable[[Renewal], Flow[None]] | None = None
        """Lists a session anew under its identity provider's names."""
        copies.viewer.merge = merge_bodies

    # -- a session is listed -----------------------------------------------------------------------

    def listing(self, key: bytes, record: Record, headers: Iterable[Sequence[bytes]], client: str | None) -> Listed:
        """A session as it is to be listed now, for as long as it can live before it is renewed. ``headers`` and
        ``client``: of the request that uses it."""
        device, address = device_of(headers), shortened(client or "", MAX_ADDRESS)
        most = record.created_at + self._policy.absolute_timeout_ms
        ends_at = min(record.expires_at(self._policy) + 2 * self.renew_ms + self._policy.touch_ms, most)
        return Listed(key, record.created_at, ends_at, device, address)

    def add(self, user: str, new: Listed, instead_of: bytes | None = None) -> Flow[list[bytes]]:
        """List a session that was just stored, before anybody is told of it. ``instead_of``: the session of the same
        user that it replaces.

        Answers the sessions that the limit ends for it: they are marked, and to be closed before the login is told.
        Raises :class:`TooManySessions`, :class:`SessionClosed` if what it replaces was closed with all others, and
        :class:`SessionUnavailable`.
        """
        ended: set[bytes] = set()
        dooms = False
        for _ in range(self.MAX_TRIES):
            change = partial(self._added, new, instead_of, frozenset(ended), dooms)
            index = yield from self.touch(self.keys_of(user), change)
            if index.find(new.key) is not None:
                self._note(new.key)
                return [key for key in index.doomed() if key not in ended]
            # It is full; some of those that are listed may have ended without a word.
            found = yield from self._ended(user, index.living())
            if not found - ended and self._policy.at_session_limit == "refuse":
                self._report(EventKind.LOGIN_REFUSED, new.key, f"{len(index.living())} sessions", user)
                raise TooManySessions("the user has as many sessions as are allowed at once")
            ended |= found
            dooms = self._policy.at_session_limit == "close-oldest"
        raise SessionUnavailable(UnavailableReason.CONTENDED)

    def _added(
        self, new: Listed, instead_of: bytes | None, ended: frozenset[bytes], dooms: bool, index: UserIndex
    ) -> UserIndex:
        """The index with one session more; without it, if that were too many.

        What it replaces stays listed, for its close may fail; what that one has replaced is closed: its token was told.
        """
        left, before = index.without(ended), None
        if instead_of is not None:
            before = index.find(instead_of)
            if before.doomed if before is not None else new.since <= index.closed_before:
                raise SessionClosed("all sessions of this user were closed")
            if before is not None:
                left = left.without((before.after,))
        limit = self._policy.sessions_per_user
        others = [one.key for one in left.living() if one.key not in (new.key, instead_of)]
        too_many = len(others) + 1 - limit
        if limit and too_many > 0:
            if not dooms:  # a write that was refused may have listed it all the same: on one branch of a fork
                return index.without((new.key,))
            left = left.dooming(others[:too_many])
        return left.with_one(new if before is None else msgspec.structs.replace(new, after=before.key))

    # -- a session is used: the index hears of it now and then ---------------------------------------

    def note_activity(self, key: bytes, record: Record, headers: Iterable[Sequence[bytes]], client: str | None) -> None:
        """A session of a user was written: list it anew, in the background, if it was not for long. A session that is
        not listed any more, since the index was lost, lists itself by this."""
        assert record.user is not None
        noted = self._noted.get(key)
        now = self._world.now_ms()
        if (noted is not None and now - noted < self.renew_ms) or len(self.waiting) >= self.MAX_WAITING:
            return
        self._note(key)
        listed = self.listing(key, record, headers, client)
        ends_at = record.created_at + self._policy.absolute_timeout_ms
        self.waiting[key] = Renewal(record.user, listed, record.provider, ends_at)
        self.on_waiting()

    def abandon(self, key: bytes) -> None:
        """Nobody was told of this session, so nobody will ever show it: it is to take no place among its user's."""
        if len(self.abandoned) < self.MAX_WAITING:
            self.abandoned[key] = None
            self.on_waiting()

    def close_abandoned(self, key: bytes) -> Flow[None]:
        """Close a session that nobody was told of; where that cannot be now, it ends by its timeout."""
        try:
            yield Exclusive(key, self._copies.close(key))
        except SessionUnavailable:
            """Its timeout ends it."""

    def next_work(self) -> Flow[None] | None:
        """What the background is to do next, if anything."""
        if self.abandoned:
            return self.close_abandoned(_pop(self.abandoned))
        if self.waiting:
            return self.renew(self.waiting.pop(next(iter(self.waiting))))
        return None

    def _note(self, key: bytes) -> None:
        self._noted.pop(key, None)
        if len(self._noted) >= self.MAX_NOTED:
            self._noted.pop(next(iter(self._noted)))
        self._noted[key] = self._world.now_ms()

    def renew(self, renewal: Renewal) -> Flow[None]:
        """List a session anew, or close it if it was to end with the others. What fails is done with its next write."""
        user, listed = renewal.user, renewal.listed
        try:
            index = yield from self.read(self.keys_of(user))
            if self._renewed(listed, index) != index:
                index = yield from self.touch(self.keys_of(user), partial(self._renewed, listed))
            now_listed = index.find(listed.key)
            if now_listed is not None and now_listed.doomed:
                yield from self.close_keys(user, [listed.key], "with all sessions of its user")
            if renewal.provider is not None and self.renew_provider is not None:
                yield from self.renew_provider(renewal)
        except SessionUnavailable:
            self._noted.pop(listed.key, None)

    def _renewed(self, new: Listed, index: UserIndex) -> UserIndex:
        known = index.find(new.key)
        if known is None:
            return index.with_one(msgspec.structs.replace(new, doomed=new.since <= index.closed_before))
        if known.doomed or known.ends_at >= new.ends_at - self.renew_ms:
            return index
        # It is used, so its browser was told, and what it replaced was closed before.
        left = index.without((known.after,))
        return left.with_one(msgspec.structs.replace(known, ends_at=new.ends_at, after=b""))

    # -- looking -----------------------------------------------------------------------------------

    def sessions_of(self, user: str) -> Flow[list[UserSession]]:
        """The sessions of a user, the oldest first; claims nothing, changes nothing.

        Raises :class:`SessionUnavailable` if too few session servers answer.
        """
        index = yield from self.read(self.keys_of(user))
        living = index.living()
        found = []
        for one, record in zip(living, (yield from self.records_of([one.key for one in living])), strict=True):
            if record is None or (isinstance(record, Record) and record.user != user):
                continue
            last_seen_at = record.last_seen_at if isinstance(record, Record) else one.since
            found.append(
                UserSession(one.key.hex(), public_id(one.key), one.device, one.address, one.since, last_seen_at)
            )
        return found

    def is_open(self, key: bytes, user: str) -> Flow[bool]:
        """Whether a session is open, asked of the session servers, and this user's."""
        record = yield from self._record_of(key)
        return record is not None and record.user == user

    def _ended(self, user: str, listed: Sequence[Listed]) -> Flow[set[bytes]]:
        """Which of these are over for certain."""
        records = yield from self.records_of([one.key for one in listed])
        pairs = zip(listed, records, strict=True)
        return {one.key for one, found in pairs if found is None or (isinstance(found, Record) and found.user != user)}

    def records_of(self, keys: Sequence[bytes]) -> Flow[list[Record | CoatcheckError | None]]:
        """Of each its record; ``None``: it is over; an error: nobody can say."""
        found: list[Record | CoatcheckError | None] = []
        for start in range(0, len(keys), self.AT_ONCE):
            looks = tuple(map(self._record_of, keys[start : start + self.AT_ONCE]))
            found += yield Together(looks)
        return found

    def _record_of(self, key: bytes) -> Flow[Record | None]:
        viewer = self._copies.viewer
        view: View = yield from viewer.look(key)
        newest = view.newest
        if newest is not None and newest.final:
            return None
        if not viewer.enough_answered(view) or (newest is None and viewer.missing(view)):
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
        if newest is None or newest.closed or is_index(view.body):
            return None
        record = decode_record(view.body)
        over = self._world.now_ms() >= record.expires_at(self._policy) or record.created_at <= self.all_closed_before
        return None if over else record

    def read(self, keys: Sequence[bytes]) -> Flow[UserIndex]:
        """What an index says, wherever it stands by the keys of the ring; claims nothing, changes nothing.

        Raises :class:`SessionUnavailable` if too few session servers answer.
        """
        found: list[UserIndex] = []
        for key in keys:
            found += [(yield from self._look(key))]
        return union(found)

    def _look(self, key: bytes) -> Flow[UserIndex]:
        view: View = yield from self._copies.viewer.look(key)
        if not self._copies.viewer.enough_answered(view):
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
        if view.newest is None or view.newest.closed:
            return UserIndex()
        return decode_index(view.body).pruned(self._world.now_ms(), self._policy.absolute_timeout_ms)

    # -- closing -----------------------------------------------------------------------------------

    def close_user(self, user: str, but: bytes | None = None, why: str = "") -> Flow[UserClosed]:
        """Close all sessions of a user, ``but`` one. Those that are not listed, since the index was lost, end when they
        are next renewed.

        Repeating it goes on with what is left. Raises :class:`SessionUnavailable` if the index cannot be written:
        nothing was closed; and :class:`SessionClosed` if the session that is to stay is closed itself.
        """
        spared = None
        if but is not None:
            record = yield from self._record_of(but)
            if record is None or record.user != user:
                raise SessionClosed("the session that is to stay is no open session of this user")
            spared = self.listing(but, record, (), None)
        now = self._world.now_ms()
        index = yield from self.touch(self.keys_of(user), partial(_closing_all, now, spared))
        closed = yield from self.close_keys(user, index.doomed(), why or "with all sessions of its user")
        self._report(EventKind.USER_CLOSED, b"", f"{closed.closed} closed, {closed.closing} closing", user)
        return closed

    def closed_before(self, user: str) -> Flow[int]:
        """When all sessions of a user were closed last (Unix ms; 0: never, or too long ago to matter)."""
        index = yield from self.read(self.keys_of(user))
        return index.closed_before

    def close_unlisted(self, user: str, moment_ms: int) -> Flow[None]:
        """Say that all sessions that were begun until then are closed, of a user who has no list."""
        yield from self.touch(self.keys_of(user), lambda index: index.closed_at(moment_ms))

    def close_keys(self, user: str, keys: Sequence[bytes], why: str) -> Flow[UserClosed]:
        """Close sessions that are marked in the index of their user, and then list them no more."""

        def report(key: bytes, how: Closed, _: Record | CoatcheckError) -> None:
            self._report(EventKind.SESSION_CLOSED, key, f"{why}, {how.holds} of {how.servers}", user)

        return self.close_marked(self.keys_of(user), keys, report)

    def close_marked(self, index_keys: Sequence[bytes], keys: Sequence[bytes], report: OnClosed) -> Flow[UserClosed]:
        """Close sessions that are marked in an index, and then list them no more there.

        Some may be over already, as what another session has replaced: they are neither counted nor reported.
        """
        done: set[bytes] = set()
        ended = 0
        for start in range(0, len(keys), self.AT_ONCE):
            some = keys[start : start + self.AT_ONCE]
            before = yield from self.records_of(some)
            closes = tuple(self._close(key, record, report) for key, record in zip(some, before, strict=True))
            outcomes: list[Closed | CoatcheckError] = yield Together(closes)
            for key, record, how in zip(some, before, outcomes, strict=True):
                if isinstance(how, Closed) and how.effective:
                    done.add(key)
                    ended += record is not None
        yield from self.unlist(index_keys, done)
        return UserClosed(ended, len(keys) - len(done))

    def unlist(self, keys: Sequence[bytes], closed: Collection[bytes]) -> Flow[None]:
        """List these no more, which no server serves any longer."""
        if not closed:
            return
        try:
            yield from self.touch(keys, lambda index: index.without(closed))
        except SessionUnavailable:
            """They are closed. The list keeps them, marked, until somebody touches it again, or it ends."""

    def _close(self, key: bytes, record: Record | CoatcheckError | None, report: OnClosed) -> Flow[Closed]:
        closed: Closed = yield Exclusive(key, self._copies.close(key))
        if record is not None:
            report(key, closed, record)
        return closed

    # -- an index is changed -----------------------------------------------------------------------

    def touch(self, keys: Sequence[bytes], change: Callable[[UserIndex], UserIndex]) -> Flow[UserIndex]:
        """Read an index, change it and write it, as one step for all web servers; answers what was written.

        ``keys``: where it may stand, the primary's first. ``change`` may be called again, on what a rival has written.
        What stands under older keys of the ring moves.
        """
        key, *older = keys
        moved: dict[bytes, UserIndex] = {}
        for old in older:
            found = yield from self._look(old)
            if found != UserIndex():
                moved[old] = found
        index: UserIndex = yield Exclusive(key, self._change(key, moved.values(), change))
        for old, found in moved.items():
            emptied = partial(_emptied, {one.key for one in found.listed})
            yield Exclusive(old, self._change(old, (), emptied))
        return index

    def _change(
        self, key: bytes, moved: Iterable[UserIndex], change: Callable[[UserIndex], UserIndex]
    ) -> Flow[UserIndex]:
        copies, longest_ms = self._copies, self._policy.absolute_timeout_ms
        try:
            for attempt in range(self.MAX_TRIES):
                if attempt:
                    yield Pause(copies.policy.backoff_s * (1 << min(attempt, 5)) * (0.5 + self._world.jitter()))
                found: Copy | Gone = yield from copies.load(key, None)
                if isinstance(found, Gone) and found is not Gone.ABSENT:
                    raise SessionUnavailable(UnavailableReason.CONTENDED)
                before = decode_index(found.body) if isinstance(found, Copy) else UserIndex()
                now = self._world.now_ms()
                index = change(union([before, *moved]).pruned(now, longest_ms))
                if index == before:
                    if isinstance(found, Gone) or (yield from copies.still_has(found, "all")) is not None:
                        return index
                    continue
                copy = found if isinstance(found, Copy) else copies.create(key)
                ends_at = max(index.ends_at(longest_ms), now + 1)
                if (yield from copies.write(copy, encode_index(index), now, ends_at, "all")) is not None:
                    return index
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        finally:
            if copies.cache.get(key) is not None:
                copies.cache.drop(key)

    def _report(self, kind: EventKind, key: bytes, detail: str, user: str) -> None:
        self._world.report(Event(kind, public_id(key) if key else "", detail, user))


def _closing_all(now_ms: int, but: Listed | None, index: UserIndex) -> UserIndex:
    if but is None:
        return index.closed_at(now_ms)
    known = index.find(but.key)
    if known.doomed if known is not None else but.since <= index.closed_before:
        raise SessionClosed("the session that is to stay was closed with all others of its user")
    return (index if known is not None else index.with_one(but)).closed_at(now_ms, but.key)


def _emptied(moved: Collection[bytes], index: UserIndex) -> UserIndex:
    return UserIndex(0, index.without(moved).listed)


def _pop(keys: dict[bytes, None]) -> bytes:
    key = next(iter(keys))
    del keys[key]
    return key
