"""Where the copies of a session are: read and claim, write, close (protocol sections 3 to 6).

All methods here that return a ``Flow`` must run as the only flow of their key: inside :class:`Exclusive`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NoReturn

import msgspec

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Cache, Copy
from coatcheck.replication.effects import (
    Accepted,
    Acknowledge,
    Flow,
    Pause,
    Put,
    Refused,
    Rest,
    Settled,
    Surroundings,
    Tell,
)
from coatcheck.replication.entry import Entry, Sealer, encode_header
from coatcheck.replication.notice import ClaimAnswer, Notice
from coatcheck.replication.placement import Placement, is_newer_list
from coatcheck.replication.policy import Durability, ReplicationPolicy
from coatcheck.replication.puts import Puts
from coatcheck.replication.resolution import contains
from coatcheck.replication.version import (
    OWNER_BYTES,
    SERVER_ID_BYTES,
    History,
    Version,
    covers,
    newest_write,
    next_write,
)
from coatcheck.replication.view import View, Viewer

FAR = float("inf")


class Gone(Enum):
    """Why there is no copy to go on with."""

    ABSENT = "absent"
    CLOSED = "closed"
    ROLLED_BACK = "rolled back"
    UNHEARD = "unheard"
    """A session server that may have what the token promises has been away for longer than the patience."""


class Lapsed(Enum):
    """What became of a session that was judged timed out."""

    CLOSED = "closed"
    USED = "used since then, elsewhere"
    UNHEARD = "a session server that may know of a later use is away"


class Written(msgspec.Struct, frozen=True):
    """An acknowledged write: ``level`` servers have it, ``target`` were wanted."""

    level: int
    target: int


class Closed(msgspec.Struct, frozen=True):
    """A close: ``holds`` of ``servers`` session servers have the tombstone. It is complete when all do.

    It is effective when ``needed`` do: then whoever hears a read quorum hears of it, wherever the network is cut.
    """

    holds: int
    servers: int
    needed: int = 1

    @property
    def complete(self) -> bool:
        return self.holds >= self.servers

    @property
    def effective(self) -> bool:
        return self.holds >= self.needed


class Copies:
    """One web server's view of all sessions: its cache, and the session servers behind it."""

    MAX_TRIED = 65_536
    MAX_CLOSING = 65_536

    def __init__(
        self,
        server_id: bytes,
        placement: Placement,
        policy: ReplicationPolicy,
        sealer: Sealer,
        world: Surroundings,
    ) -> None:
        """``server_id``: 3 bytes, different for each run of each web server; notices are sent to it."""
        if len(server_id) != SERVER_ID_BYTES:
            raise ValueError(f"a server ID has {SERVER_ID_BYTES} bytes, not {len(server_id)}")
        self.server_id = server_id
        self.placement = placement
        self.policy = policy
        self.cache = Cache(policy.max_sessions)
        self._hosted = self.cache.get
        self._leases_from = 0.0
        """A lease that ends by this moment (monotonic seconds) was earned before all leases were voided."""
        self._monotonic = world.monotonic
        self.sealer = sealer
        self.world = world
        self.viewer = Viewer(placement, policy, sealer, world, self.cache)
        self.puts = Puts(placement, policy, sealer, world, self.cache)
        self.under_replicated = self.puts.under_replicated
        self.closing: dict[bytes, Entry] = {}
        self._closing_until: dict[bytes, float] = {}
        """Monotonic seconds: when the first tombstone of each of :attr:`closing` ends, and all that it forbids."""
        self.partly_closed: set[bytes] = set()
        """Those of :attr:`closing` that too few session servers hold for the close to be effective."""
        self._tried: dict[bytes, int] = {}
        self._claiming: dict[bytes, Copy] = {}
        """Claims under way: the old owner may answer before the last session server does."""

    # -- reading ---------------------------------------------------------------------------------

    def cached(self, key: bytes, promised: bytes) -> Copy | None:
        """The own copy, if it may be served without asking anyone. The hot path: no flow, no I/O."""
        copy = self._hosted(key)
        if copy is None or copy.lease_until <= self._monotonic() or copy.lease_until <= self._leases_from:
            return None
        return copy if copy.promised == promised or copy.covers(promised) else None

    def void_leases(self) -> None:
        """Ask again before serving anything: this process was not running, and has heard no notices. What was sent
        before now earns no lease either. However many sessions are hosted, this is one assignment."""
        self.puts.distrust()
        self._leases_from = self.world.monotonic() + self.policy.lease_s

    def leased_until(self, copy: Copy) -> float:
        """Until when (monotonic seconds) a copy may be served without asking; 0.0 if its lease was voided."""
        return copy.lease_until if copy.lease_until > self._leases_from else 0.0

    def load(
        self,
        key: bytes,
        promised: bytes | None,
        accept_rollback: bool = False,
        list_number: int | None = None,
        patient: bool = True,
    ) -> Flow[Copy | Gone]:
        """Become (or stay) the owner of a session and return a copy with everything that was promised.

        ``promised``: the packed version of the token that asks; ``None`` if nothing was promised. ``list_number``: of
        the list of session servers when it was issued. What is not found is lost only when all session servers of a
        list that is no older say so, twice; until then it is unheard: nothing is claimed and nothing closed.
        ``patient``: whether it pays to wait for who may have it.
        Raises :class:`SessionUnavailable` when the copies cannot be reached: fail closed.
        """
        wanted = Version.unpack(promised) if promised is not None and any(promised) else None
        looked_twice = False
        for attempt in range(self.policy.max_tries):
            if attempt:
                yield Pause(self._backoff(attempt))
            elif promised is not None and (copy := self.cached(key, promised)) is not None:
                return copy  # somebody else's load, while we waited for our turn
            view = yield from self.viewer.look(key)
            newest = view.newest
            if newest is not None and newest.final:
                self.cache.mark_closed(key)
                self._must_be_effective((yield from self._finish(view)))
                return Gone.CLOSED
            if key in self.partly_closed and self.unfinished_close(key) is not None:
                self._must_be_effective((yield from self.close_again(key)))
                return Gone.CLOSED
            if not self.viewer.enough_answered(view):
                raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
            lacking = newest is None or not covers(newest.history, wanted)
            if lacking and wanted is not None:
                if self._is_unheard(view, wanted, list_number, patient):
                    if newest is None or newest.closed or not accept_rollback:
                        return Gone.UNHEARD
                elif not looked_twice and not view.covered_somewhere(wanted):
                    looked_twice = True  # a copy may have moved from a server not yet asked to one already asked
                    continue
            else:
                self.viewer.absences.heard(key)
            if newest is None:
                return Gone.ABSENT
            if newest.closed:
                self.cache.drop(key)
                yield from self.spread(view)
                return Gone.CLOSED
            if lacking and not view.covered_somewhere(wanted):
                self._report(EventKind.SESSION_ROLLED_BACK, key, f"token {wanted}, newest copy {newest.version}")
                if not accept_rollback:
                    yield from self._put_provisional(view)
                    return Gone.ROLLED_BACK
            if view.forked or (lacking and view.covered_somewhere(wanted)):
                self._report(EventKind.SESSION_FORKED, key, f"went on with {newest.version}")
            owned = (yield from self.refresh(view)) if view.is_mine() else (yield from self.claim(view))
            if self.cache.is_closed(key):
                return Gone.CLOSED  # we saw its tombstone once, though every server that answered has forgotten it
            if owned is not None:
                return owned
        raise SessionUnavailable(UnavailableReason.CONTENDED)

    def _is_unheard(self, view: View, wanted: Version, list_number: int | None, patient: bool) -> bool:
        """Whether what the token promises may be on a session server that did not answer, or that is not in our list.

        Raises :class:`SessionUnavailable` while the patience lasts, if there is any.
        """
        missing = self.viewer.missing(view)
        outdated = list_number is not None and is_newer_list(list_number, self.placement.list_number)
        if not missing and not outdated:
            return False
        waited_s = self.viewer.absences.waited_s(view.key, missing)
        who = ", ".join(missing) or "a newer list of session servers"
        self._report(EventKind.SESSION_UNHEARD, view.key, f"token {wanted}, no answer from {who} for {waited_s:.1f} s")
        if patient and waited_s < self.policy.patience_s:
            raise SessionUnavailable(UnavailableReason.UNHEARD)
        return True

    def refresh(self, view: View) -> Flow[Copy | None]:
        """The own copy was checked and is the newest: bring the placed servers up to it, renew the lease."""
        copy = view.cached
        assert copy is not None
        self.cache.note_mine(copy)
        self.puts.forget_lost(copy)
        copy.saw(view.seen)
        placed = self.puts.placed_among(copy.key, view.seen)
        lacking = [server for server in placed if view.seen[server] != copy.version]
        if lacking:
            settled: Settled = yield Put(copy.key, self.puts.sealed(copy), copy.seen_on_each(tuple(lacking)))
            if self.puts.note_accepted(copy, copy.version, settled) is None:
                self.cache.drop(copy.key)
                return None
        holders = sum(copy.is_on(server) for server in view.seen)
        self.puts.earn_lease(copy, view.sent_at, holders)
        self.puts.check_level(copy, holders, quorum=self.policy.too_few_answers == "refuse")
        return copy

    def claim(self, view: View, leave: Collection[str] = ()) -> Flow[Copy | None]:
        """Become the owner: a new epoch, no change of data. ``None`` if a rival was faster.

        ``leave``: servers that are not told, although they showed a copy.
        """
        newest, key = view.newest, view.key
        assert newest is not None
        self.cache.drop(key)
        copy = Copy(key, Version(self._next_epoch(view), self._fresh_owner(), 0), newest.history, view.body)
        copy.expires_at = self.world.now_ms() + newest.expires_in_ms - self.policy.linger_ms
        if not newest.expires_in_ms and view.cached is not None:
            copy.expires_at = view.cached.expires_at
        copy.saw(view.seen)
        copy.contact = self.puts.contact
        copy.alone_at = FAR
        self._claiming[key] = copy
        try:
            claimed = yield from self._put_claim(copy, view, leave)
        except SessionUnavailable:
            self._keep_survivor(view)
            raise
        finally:
            del self._claiming[key]
        if not claimed:
            return None
        if view.cached is not None and newest.version == view.cached.version:
            copy.alone_at = min(copy.alone_at, view.cached.alone_at)
        copy.alone_at = min(copy.alone_at, self.world.monotonic() + self.policy.lease_s)
        return copy

    def _keep_survivor(self, view: View) -> None:
        """The claim was not acknowledged: if our own cached copy was the newest, it may be the only one left."""
        own = view.cached
        if own is not None and view.newest is not None and own.version == view.newest.version:
            own.lease_until = 0.0
            if own.spent:
                self.cache.set_aside(own)
            else:
                self.cache.add(own)

    def _put_claim(self, copy: Copy, view: View, leave: Collection[str]) -> Flow[bool]:
        """The first-ranked reachable server decides between rivals, so that they do not livelock; then, in
        parallel, the other placed ones and every server that showed a copy."""
        entry = self.puts.sealed(copy)
        sent_at = None
        holders: list[str] = []
        for server in self.placement.ranking(copy.key):
            if server in view.avoid or not self.world.reachable(server):
                continue
            settled: Settled = yield Put(copy.key, entry, copy.seen_on_each((server,)))
            sent_at = settled.sent_at if sent_at is None else sent_at
            if self.puts.note_accepted(copy, copy.version, settled) is None:
                return False
            if isinstance(settled.replies[server], Accepted):
                holders.append(server)
                break
        if sent_at is None or not holders:
            raise SessionUnavailable(UnavailableReason.NO_SERVER)
        showed = [name for name in view.entries if name not in holders and name not in leave]
        settled, taken = yield from self.puts.to_placed(copy, entry, holders, showed)
        if taken is None:
            return False
        yield from self._notify_others(view, copy.version, [*holders, *settled.replies], closed=False)
        level = taken + 1
        # Who serves with too few answers serves with too few copies of a claim, which carries no data.
        self.puts.check_level(copy, level, quorum=self.policy.too_few_answers == "refuse")
        self.cache.add(copy)
        self.puts.earn_lease(copy, sent_at, level)
        return True

    def _notify_others(self, view: View, version: Version, put_to: Iterable[str], closed: bool) -> Flow[None]:
        """A session server notifies the owner that it has stored; through those that had nothing stored, we notify
        the owners that the others showed."""
        through = tuple(name for name in put_to if view.seen.get(name) is None and name in view.seen)
        owners = {entry.version.server_id for entry in view.entries.values() if not entry.closed} - {self.server_id}
        for server_id in sorted(owners) if through else ():
            yield Tell(server_id, Notice(view.key, version, closed).encode(), through)

    # -- writing ---------------------------------------------------------------------------------

    def create(self, key: bytes) -> Copy:
        """A copy of a session that exists nowhere yet; the first :meth:`write` stores it."""
        return Copy(key, Version(1, self._fresh_owner(), 0), (), b"")

    def write(
        self, copy: Copy, body: bytes, now_ms: int, expires_at: int, durability: Durability
    ) -> Flow[Written | None]:
        """Store a new state of an owned session. ``None``: refused, somebody else owns it now.

        With ``async`` or ``one`` the flow acknowledges early and goes on until all servers are settled;
        run it inside :class:`Detach`. Raises :class:`SessionUnavailable`; whatever is not acknowledged leaves
        the cache, so that its number is never used again.
        """
        puts = self.puts
        if copy.contact != puts.contact:
            puts.forget_lost(copy)
        version, history = next_write(copy.packed, copy.packed_history)
        entry = puts.seal(copy.key, version, history, body, expires_at - now_ms)
        acknowledged = False
        try:
            if durability != "all":
                new = copy.without_lease()  # what is hosted is the acknowledged state until all servers have answered
                new.wrote(version, history, body, expires_at)
                settled, level = yield from self._put_early(new, entry, copy.promised, durability)
            else:
                new, put = copy, puts.first(copy, entry)
                settled = Settled(self._monotonic(), {}) if put is None else (yield put)
                level = puts.note_accepted(copy, version, settled)
                if level is not None and level < self.placement.wanted:
                    level = yield from puts.complete(copy, entry, level, settled)
            if level is None or self.cache.is_closed(copy.key):
                return None
            if not level:
                self._nobody_took(new, settled)
            if level < self.placement.wanted or puts.under_replicated:
                puts.check_level(new, level, quorum=durability == "all")
            acknowledged = True
            if new is copy:
                copy.wrote(version, history, body, expires_at)
                if copy.moved:
                    self.cache.note_mine(copy)
            else:
                new.promised = version
                # A notice may have reached the old copy while the put was in flight.
                new.no_lease_before = max(new.no_lease_before, copy.no_lease_before)
            self.cache.add(new)
            puts.earn_lease(new, settled.sent_at, level)
            return Written(level, self.placement.wanted)
        finally:
            # Also when the request is cancelled: an unacknowledged number must never be used again.
            if not acknowledged:
                self.cache.set_aside(copy)

    def _nobody_took(self, copy: Copy, settled: Settled) -> NoReturn:
        if settled.found_full:
            self._report(EventKind.SERVERS_FULL, copy.key, "no room for it on any session server that answers")
            raise SessionUnavailable(UnavailableReason.FULL)
        raise SessionUnavailable(UnavailableReason.NO_SERVER)

    def _put_early(
        self, new: Copy, entry: Entry, before: bytes, durability: Durability
    ) -> Flow[tuple[Settled, int | None]]:
        """As :meth:`Puts.to_placed`, but acknowledges as early as asked for. ``before``: what was promised so far."""
        target = self.placement.wanted
        if durability == "async":
            new.promised = before  # no token speaks of what no session server has taken yet
            self.cache.add(new)
            yield Acknowledge(Written(0, target))
        put = self.puts.first(new, entry, enough=1 if durability == "one" else None)
        settled = Settled(self._monotonic(), {}) if put is None else (yield put)
        level = self.puts.note_accepted(new, new.version, settled)
        level = yield from self.puts.complete(new, entry, level, settled)
        if settled.pending is not None and level is not None:
            self.cache.add(new)
            yield Acknowledge(Written(1, target))
            yield Rest(settled)
            level = self.puts.note_accepted(new, new.version, settled)
        return settled, level

    # -- closing ---------------------------------------------------------------------------------

    def close(self, key: bytes) -> Flow[Closed]:
        """Put a tombstone on every session server, and wait until no other server can serve from a lease.

        Repeating a close is harmless. What could not be reached is kept in :attr:`closing` and retried by the
        repair. Raises :class:`SessionUnavailable` when no session server took it.
        """
        view = yield from self.viewer.look(key)
        newest = view.newest
        if newest is not None and newest.final:
            self.cache.mark_closed(key)
            return (yield from self._finish(view))
        own = view.cached if view.cached is not None and view.is_mine() else None
        version = Version(self._next_epoch(view), self._fresh_owner(), 0)
        history = newest.history if newest is not None else ()
        payload = self.sealer.seal(key, encode_header(version, history, True), b"")
        tombstone = Entry(version, history, True, self.policy.tombstone_ms, payload)
        self.cache.mark_closed(key)
        self.under_replicated.discard(key)
        self._remember_closing(key, tombstone, self.world.monotonic())
        if own is not None:
            self._claiming[key] = own  # still ours to hear that a rival was faster than the tombstone
        try:
            closed = yield from self.put_tombstone(key, tombstone, dict.fromkeys(self.placement.servers))
        finally:
            self._claiming.pop(key, None)
        yield from self._notify_others(view, version, self.placement.servers, closed=True)
        if not closed.holds:
            raise SessionUnavailable(UnavailableReason.NO_SERVER)
        # An owner that is not us may have renewed its lease until the tombstone reached it.
        alone = own is not None and own.no_lease_before < view.sent_at
        yield from self._wait_until(own.alone_at if own and alone else self.world.monotonic() + self.policy.lease_s)
        self._note_effect(key, closed)
        return closed

    def _finish(self, view: View) -> Flow[Closed]:
        """Bring a tombstone that was seen to where it lacks, and wait as its closer has to wait."""
        tombstone, needed = view.newest, self._close_quorum()
        assert tombstone is not None
        held = sum(entry.final for entry in view.entries.values())
        alive = any(not entry.closed for entry in view.entries.values())
        closed = yield from self.spread(view)
        if not closed.effective:
            self._remember_closing(view.key, tombstone, view.sent_at)
            self.partly_closed.add(view.key)
        elif held < needed or alive:
            # Who is cut off from the tombstone may have earned a lease where it was missing, until a moment ago.
            yield from self._wait_until(self.world.monotonic() + self.policy.lease_s)
        else:
            # Somebody else's close may still be waiting for leases: so do we, for what is left of it.
            age_s = (self.policy.tombstone_ms - tombstone.expires_in_ms) / 1000
            yield from self._wait_until(view.sent_at + max(0.0, self.policy.lease_s - max(0.0, age_s)))
        self._note_effect(view.key, closed)
        return closed

    def close_again(self, key: bytes) -> Flow[Closed]:
        """Put the tombstone of a close in :attr:`closing` once more; of one that was not effective nothing is told
        before it is, and before no other server can serve from a lease.

        Only while it is not effective does it get its whole life again: by the age of a tombstone others judge for how
        long a lease may still be served. Afterwards it gets the life that is left.
        """
        tombstone = self.closing[key]
        if key not in self.partly_closed:
            left_ms = int((self._closing_until[key] - self.world.monotonic()) * 1000)
            tombstone = msgspec.structs.replace(tombstone, expires_in_ms=max(1, left_ms))
        closed = yield from self.put_tombstone(key, tombstone, dict.fromkeys(self.placement.servers))
        if closed.effective and key in self.partly_closed:
            yield from self._wait_until(self.world.monotonic() + self.policy.lease_s)
        self._note_effect(key, closed)
        return closed

    def _note_effect(self, key: bytes, closed: Closed) -> None:
        """Nobody can serve the session any more: that may be told."""
        if closed.effective:
            self.partly_closed.discard(key)
        if closed.complete:
            self._forget_closing(key)

    def _close_quorum(self) -> int:
        """So many tombstones that every read quorum meets one; one, where answers are not counted."""
        return self.placement.write_quorum if self.policy.too_few_answers == "refuse" else 1

    def _must_be_effective(self, closed: Closed) -> None:
        if not closed.effective:
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)

    def _wait_until(self, moment_s: float) -> Flow[None]:
        while (left_s := moment_s - self.world.monotonic()) > 0:
            yield Pause(left_s)

    def lapse(self, key: bytes, judged: History) -> Flow[Lapsed]:
        """Close a session that has timed out, by the state that has the history ``judged``.

        Nobody willed it: only if all session servers answer and none shows another write. Raises
        :class:`SessionUnavailable` when nobody answers.
        """
        view = yield from self.viewer.look(key)
        newest = view.newest
        if newest is None:
            return Lapsed.UNHEARD if self.viewer.missing(view) else Lapsed.CLOSED
        if newest.closed:
            yield from self.spread(view)
            return Lapsed.CLOSED
        if view.forked or newest_write(newest.history) != newest_write(judged):
            return Lapsed.USED
        if self.viewer.missing(view):
            return Lapsed.UNHEARD
        yield from self._put_provisional(view)
        return Lapsed.CLOSED

    def _put_provisional(self, view: View) -> Flow[None]:
        """Put a tombstone that closes what it covers and no more: by compare-and-set, on what this view showed, and not
        over the other branch of a fork."""
        newest, key = view.newest, view.key
        assert newest is not None
        version = Version(self._next_epoch(view), self._fresh_owner(), 0)
        payload = self.sealer.seal(key, encode_header(version, newest.history, True, True), b"")
        tombstone = Entry(version, newest.history, True, self.policy.tombstone_ms, payload, True)
        self.cache.drop(key)
        self.under_replicated.discard(key)
        beyond = {name for name, entry in view.entries.items() if not contains(tombstone, entry)}
        covered = {name: seen for name, seen in view.seen.items() if name not in beyond}
        yield from self.put_tombstone(key, tombstone, covered)
        yield from self._notify_others(view, version, covered, closed=True)

    def spread(self, view: View) -> Flow[Closed]:
        """Whoever sees a tombstone puts it on every session server that lacks it; a provisional one only over what it
        covers, by compare-and-set."""
        tombstone = view.newest
        assert tombstone is not None
        assert tombstone.closed
        lacking = {name: version for name, version in view.seen.items() if _lacks(view.entries.get(name), tombstone)}
        return (yield from self.put_tombstone(view.key, tombstone, lacking, len(view.seen) - len(lacking)))

    def put_tombstone(
        self, key: bytes, tombstone: Entry, seen: Mapping[str, Version | None], holds: int = 0
    ) -> Flow[Closed]:
        """Put a tombstone on the servers of ``seen``; ``holds`` others have it already."""
        if seen:
            settled: Settled = yield Put(key, tombstone, seen)
            for reply in settled.replies.values():
                stored_closed = isinstance(reply, Refused) and reply.stored is not None and reply.stored.closed
                holds += isinstance(reply, Accepted) or stored_closed
        closed = Closed(holds, len(self.placement.servers), self._close_quorum())
        if tombstone.provisional:
            return closed
        if not closed.effective and key in self.closing:
            self.partly_closed.add(key)
        if closed.complete and key not in self.partly_closed:
            self._forget_closing(key)
        elif len(seen) == len(self.placement.servers):
            self._report(EventKind.CLOSE_INCOMPLETE, key, f"closing, {holds} of {closed.servers}")
        return closed

    def unfinished_close(self, key: bytes) -> Entry | None:
        """The tombstone in :attr:`closing` that is still to be put; one whose life is over is forgotten, for every
        token and entry that it forbids has ended."""
        if self._closing_until.get(key, FAR) <= self.world.monotonic():
            self._forget_closing(key)
        return self.closing.get(key)

    def _remember_closing(self, key: bytes, tombstone: Entry, since: float) -> None:
        """``since``: when the tombstone had the life that it says. Another one of the same session prolongs nothing."""
        if key not in self.closing and len(self.closing) >= self.MAX_CLOSING:
            self._forget_closing(next(iter(self.closing)))
        self.closing[key] = tombstone
        self._closing_until.setdefault(key, since + tombstone.expires_in_ms / 1000)

    def _forget_closing(self, key: bytes) -> None:
        self.closing.pop(key, None)
        self._closing_until.pop(key, None)
        self.partly_closed.discard(key)

    # -- messages from other web servers ---------------------------------------------------------

    def on_message(self, message: Notice | ClaimAnswer) -> Tell | None:
        """Take a notice (stop serving from the cache, answer) or an answer (no one else serves any more).

        Notices are not sealed, so one of a close proves nothing: a tombstone has to be seen.
        """
        copy = self._claiming.get(message.key) or self.cache.get(message.key)
        if copy is None:
            return None
        own = copy.version.claim == message.version.claim
        now = self.world.monotonic()
        if isinstance(message, ClaimAnswer):
            if own:
                copy.alone_at = min(copy.alone_at, now + message.others_ms / 1000)
            return None
        if own or message.version.server_id == self.server_id:
            if message.version.epoch > copy.version.epoch and not message.closed:
                # A claim of ours that was given up has reached a session server after all: copies may differ.
                self.under_replicated.add(message.key)
            return None  # our own claim or close
        # Whatever its epoch: a close takes its epoch from an older look than our claim may have had.
        copy.no_lease_before = now
        copy.lease_until = 0.0
        self.cache.note_moved(copy)
        others_s = min(max(0.0, copy.alone_at - now), self.policy.lease_s)
        answer = ClaimAnswer(message.key, message.version, math.ceil(others_s * 1000))
        return Tell(message.version.server_id, answer.encode())

    # -- shared by the above ---------------------------------------------------------------------

    def _next_epoch(self, view: View) -> int:
        epoch = 1 + max(view.highest_epoch(), self._tried.pop(view.key, 0))
        if len(self._tried) >= self.MAX_TRIED:
            self._tried.pop(next(iter(self._tried)))
        self._tried[view.key] = epoch
        return epoch

    def _fresh_owner(self) -> bytes:
        return self.server_id + self.world.random_bytes(OWNER_BYTES - SERVER_ID_BYTES)

    def _backoff(self, attempt: int) -> float:
        doublings = min(attempt, 5)
        return self.policy.backoff_s * float(1 << doublings) * (0.5 + self.world.jitter())

    def _report(self, kind: EventKind, key: bytes, detail: str) -> None:
        self.world.report(Event(kind, public_id(key), detail))


def _lacks(stored: Entry | None, tombstone: Entry) -> bool:
    """Whether a session server that holds ``stored`` must be given the tombstone."""
    if stored is None:
        return True
    if not tombstone.provisional:
        return not stored.final
    return not stored.closed and contains(tombstone, stored)
