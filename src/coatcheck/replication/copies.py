"""Where the copies of a session are: read and claim, write (protocol sections 3 to 6).

All methods here that return a ``Flow`` must run as the only flow of their key: inside :class:`Exclusive`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import NoReturn

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import FAR, Closes
from coatcheck.replication.effects import (
    Accepted,
    Acknowledge,
    Flow,
    Pause,
    Put,
    Rest,
    Settled,
)
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import is_newer_list
from coatcheck.replication.policy import Durability
from coatcheck.replication.version import (
    Version,
    covers,
    next_write,
)
from coatcheck.replication.view import View
from coatcheck.value import Value


class Gone(Enum):
    """Why there is no copy to go on with."""

    ABSENT = "absent"
    CLOSED = "closed"
    ROLLED_BACK = "rolled back"
    UNHEARD = "unheard"
    """A session server that may have what the token promises has been away for longer than the patience."""


class Written(Value):
    """An acknowledged write: ``level`` servers have it, ``target`` were wanted."""

    level: int
    target: int


class Copies(Closes):
    """One web server's view of all sessions: its cache, and the session servers behind it."""

    # -- reading ---------------------------------------------------------------------------------

    def cached(self, key: bytes, promised: bytes) -> Copy | None:
        """The own copy, if it may be served without asking anyone. The hot path: no flow, no I/O."""
        copy = self._hosted(key)
        if copy is None or copy.lease_until <= self._leases_from:
            return None
        now = self._monotonic()
        if copy.lease_until <= now and not (now < self.links.heard_until and now < copy.lease_until + self._beyond_s):
            return None
        return copy if copy.promised == promised or copy.covers(promised) else None

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
        copy.alone_at = min(copy.alone_at, self._leases_over_at())
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
        entry, notify = self.puts.sealed(copy), self.owners_shown(view)
        sent_at = None
        holders: list[str] = []
        for server in self.placement.ranking(copy.key):
            if server in view.avoid or not self.world.reachable(server):
                continue
            settled: Settled = yield Put(copy.key, entry, copy.seen_on_each((server,)), notify=notify)
            sent_at = settled.sent_at if sent_at is None else sent_at
            if self.puts.note_accepted(copy, copy.version, settled) is None:
                return False
            if isinstance(settled.replies[server], Accepted):
                holders.append(server)
                break
        if sent_at is None or not holders:
            raise SessionUnavailable(UnavailableReason.NO_SERVER)
        showed = [name for name in view.entries if name not in holders and name not in leave]
        settled, taken = yield from self.puts.to_placed(copy, entry, holders, showed, notify)
        if taken is None:
            return False
        holders += settled.takers()
        if not (yield from self._reach_owners(copy, entry, view, [*holders, *settled.replies], holders, leave)):
            return False
        level = len(holders)
        # Who serves with too few answers serves with too few copies of a claim, which carries no data.
        self.puts.check_level(copy, level, quorum=self.policy.too_few_answers == "refuse")
        self.cache.add(copy)
        self.puts.earn_lease(copy, sent_at, level)
        return True

    def _reach_owners(
        self, copy: Copy, entry: Entry, view: View, asked: Iterable[str], holders: list[str], leave: Collection[str]
    ) -> Flow[bool]:
        """Put the claim to further servers until no lease of another owner is without one of its ``holders``: all that
        showed a copy have it (but those that were to be left), or so many that every set of ``wanted`` servers has one.

        ``False``: those are too few, or a rival was faster. ``asked``: who need not be asked again.
        """
        tried = set(asked)
        while self.links.prolong and any(name not in holders and name not in leave for name in view.entries):
            lacking = self._close_quorum() - len(holders)
            if lacking <= 0:
                return True
            further = self.puts.next_reachable(copy.key, lacking, tried | view.avoid)
            if not further:
                return False
            tried.update(further)
            seen = copy.seen_on_each(tuple(further))
            settled: Settled = yield Put(copy.key, entry, seen, notify=self.owners_shown(view))
            if self.puts.note_accepted(copy, copy.version, settled) is None:
                return False
            holders += settled.takers()
        return True

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
                new, put, shown_by = copy, puts.first(copy, entry), copy.shown_by
                settled = Settled(self._monotonic(), {}) if put is None else (yield put)
                level = puts.note_accepted(copy, version, settled)
                if level is not None and level < self.placement.wanted:
                    level = yield from puts.complete(copy, entry, level, settled)
                if level and copy.shown_by is not shown_by and copy.packed_history:  # never at a creation
                    level = yield from self._count_stand_ins(copy, entry, level, settled, shown_by)
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

    def _count_stand_ins(
        self, copy: Copy, entry: Entry, level: int, settled: Settled, shown_by: Collection[str]
    ) -> Flow[int | None]:
        """How many have a write, ``level`` of which took it so far. Who showed an earlier state of the copy
        (``shown_by``) has kept it until the put. Who had nothing may have been emptied just now, and meanwhile another
        web server may have replaced the write where it was taken first: it does so where it finds a fork."""
        takers = settled.takers()
        if all(server in shown_by for server in takers):
            return level
        return (yield from self.puts.confirm(copy, entry, takers))

    def still_has(self, copy: Copy, durability: Durability) -> Flow[Written | None]:
        """As many session servers as have this copy at one moment, where a claim may have found it on fewer; ``None``:
        somebody else owns it now. Raises :class:`SessionUnavailable` if those are too few for a write."""
        holders = [server for server in self.placement.servers if server in copy.shown_by and copy.is_on(server)]
        level = yield from self.puts.confirm(copy, self.puts.sealed(copy), holders)
        if level is None:
            self.cache.set_aside(copy)
            return None
        self.puts.check_level(copy, level, quorum=durability == "all")
        return Written(level, self.placement.wanted)

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

    def _backoff(self, attempt: int) -> float:
        doublings = min(attempt, 5)
        return self.policy.backoff_s * float(1 << doublings) * (0.5 + self.world.jitter())
