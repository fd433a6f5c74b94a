"""Bringing the copies of a session back to their number (protocol section 9, mission B9)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Accepted, Flow, Put, Settled
from coatcheck.replication.surplus import Surplus


class Repaired(Enum):
    """What a repair found, and left."""

    NOTHING = "nothing stored"
    WHOLE = "nothing to do"
    MENDED = "copied"
    PARTIAL = "still under-replicated"
    CONTENDED = "somebody else is writing"


class Repair:
    """Repairs one session at a time; pacing and progress are the driver's."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._surplus = Surplus(copies)

    def known(self) -> list[bytes]:
        """Keys of which something is known to need a look: unfinished closes, then puts that were not taken."""
        copies = self._copies
        unfinished = [key for key in list(copies.closing) if copies.unfinished_close(key) is not None]
        return [*unfinished, *copies.puts.unsettled]

    def every(self) -> Iterator[bytes]:
        """All keys that may need repair, some of them twice, the most urgent first: what is known to, what is counted
        as having too few copies (also if we host it no more: only a look sets the gauge right), and what is hosted.

        However many there are, no step from one to the next takes long, and the sessions may change between them.
        """
        yield from self.known()
        yield from list(self._copies.under_replicated)
        yield from self._copies.cache.keys()

    def needs(self, key: bytes) -> bool:
        """Whether a repair of this session could mend something, as far as its web server knows: an unfinished close; a
        placed server lacks it; another server showed a copy of a former owner that our claim has not reached.

        Asks nobody, and takes microseconds.
        """
        copies = self._copies
        if copies.closing and copies.unfinished_close(key) is not None:
            return True
        copy = copies.cache.get(key)
        if copy is None:
            copies.puts.unsettled.discard(key)
            return key in copies.under_replicated
        copies.puts.forget_lost(copy)
        placed = copies.puts.placed(key)
        lacking = not all(map(copy.is_on, placed))
        if lacking or self._knows_left_over(copy) or self._surplus.of_hosted(copy):
            return True
        copies.puts.unsettled.discard(key)
        # With fewer servers than copies there is nothing to be done; with enough of them the gauge is wrong.
        return key in copies.under_replicated and len(placed) >= copies.placement.wanted

    def unknown(self, server: str, found: Iterable[bytes]) -> list[bytes]:
        """Which of the sessions that a scan ``found`` on a session server are to be looked at: those that are not
        hosted here, and those of which it had nothing as far as their copy knows (a write that was given up may have
        come late)."""
        unknown = []
        for key in found:
            copy = self._copies.cache.get(key)
            if copy is not None:
                self._copies.puts.forget_lost(copy)
            if copy is None or copy.seen_on(server) is None:
                unknown.append(key)
        return unknown

    def _knows_left_over(self, copy: Copy) -> bool:
        reachable = self._copies.world.reachable
        claim = copy.version.claim
        return any(seen.claim != claim and reachable(name) for name, seen in copy.seen.items())

    def lost_server(self, server: str) -> None:
        """A session server went away or came back: what it held is no longer taken for granted, and no lease is.

        Takes the same time however many sessions are hosted; which of them need repair, :meth:`needs` says.
        """
        self._copies.puts.lost_contact(server)
        self._surplus.note(server)
        self._copies.viewer.absences.note(server, self._copies.world.reachable(server))
        self._copies.void_leases()

    def repair(self, key: bytes) -> Flow[Repaired]:
        """Read all reachable servers; spread a tombstone; copy the entry that covers all; otherwise claim. Then
        withdraw the copies that stood in for a server that is back.

        Run it inside :class:`Exclusive`. Raises :class:`SessionUnavailable` if nobody answers.
        """
        outcome = yield from self._repair(key)
        if outcome in (Repaired.WHOLE, Repaired.MENDED) and (yield from self._surplus.withdraw(key)):
            return Repaired.MENDED
        return outcome

    def _repair(self, key: bytes) -> Flow[Repaired]:
        copies = self._copies
        view = yield from copies.viewer.look(key)
        tombstone = copies.unfinished_close(key)
        newest = view.newest
        if tombstone is not None and (newest is None or not newest.final or key in copies.partly_closed):
            closed = yield from copies.close_again(key)
            return Repaired.MENDED if closed.complete else Repaired.PARTIAL
        if newest is None:
            copies.under_replicated.discard(key)
            return Repaired.NOTHING
        if newest.closed:
            if newest.final:
                copies.cache.mark_closed(key)
            else:
                copies.cache.drop(key)
            copies.under_replicated.discard(key)
            closed = yield from copies.spread(view)
            return Repaired.MENDED if closed.complete else Repaired.PARTIAL
        if view.is_mine() or (view.cached is not None and not view.cached.spent and not view.entries):
            return self._outcome(key, (yield from copies.refresh(view)) is not None)
        if view.forked or not any(entry == newest for entry in view.entries.values()):
            if not copies.viewer.enough_answered(view):
                return Repaired.PARTIAL  # who has not answered may have the entry that covers all
            if view.forked:  # else the newest copy is our own, and what a former owner stored lacks some of it
                copies.world.report(Event(EventKind.SESSION_FORKED, public_id(key), "found by repair"))
            return self._outcome(key, (yield from copies.claim(view)) is not None)
        copies.cache.drop(key)
        placed = copies.puts.placed_among(key, view.seen)
        lacking = [name for name in placed if view.seen[name] != newest.version]
        if not lacking:
            copies.under_replicated.discard(key)
            return Repaired.WHOLE
        seen = {name: view.seen[name] for name in lacking}
        settled: Settled = yield Put(key, newest, seen, notify=copies.owners_shown(view))
        mended = all(isinstance(reply, Accepted) for reply in settled.replies.values())
        if mended:
            copies.under_replicated.discard(key)
        return Repaired.MENDED if mended else Repaired.CONTENDED

    def _outcome(self, key: bytes, done: bool) -> Repaired:
        if not done:
            return Repaired.CONTENDED
        return Repaired.PARTIAL if key in self._copies.under_replicated else Repaired.MENDED
