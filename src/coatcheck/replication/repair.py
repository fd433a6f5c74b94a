"""Bringing the copies of a session back to their number (protocol section 9, mission B9)."""

from __future__ import annotations

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

    def needs_repair(self) -> list[bytes]:
        """Keys of hosted sessions that the servers placed for them do not all hold, or of which another server showed
        a copy of a former owner that our claim has not reached; and of unfinished closes."""
        copies = self._copies
        # What the gauge counts is looked at again even if we host it no more: only that sets the gauge right.
        unfinished = [key for key in list(copies.closing) if copies.unfinished_close(key) is not None]
        keys = dict.fromkeys([*unfinished, *sorted(copies.under_replicated)])
        for copy in copies.cache:
            lacking = any(copy.seen.get(name) != copy.version for name in copies.puts.placed(copy.key))
            if lacking or self._knows_left_over(copy) or self._surplus.of_hosted(copy):
                keys[copy.key] = None
        return list(keys)

    def _knows_left_over(self, copy: Copy) -> bool:
        reachable = self._copies.world.reachable
        owner = copy.version[:2]
        return any(seen is not None and seen[:2] != owner and reachable(name) for name, seen in copy.seen.items())

    def lost_server(self, server: str) -> None:
        """A session server went away or came back: what it held is no longer taken for granted."""
        self._copies.puts.lost_contact(server)
        self._surplus.note(server)
        self._copies.viewer.absences.note(server, self._copies.world.reachable(server))
        for copy in self._copies.cache:
            if copy.seen.get(server) == copy.version:
                del copy.seen[server]
                copy.lease_until = 0.0
                self._copies.under_replicated.add(copy.key)

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
        settled: Settled = yield Put(key, newest, {name: view.seen[name] for name in lacking})
        mended = all(isinstance(reply, Accepted) for reply in settled.replies.values())
        if mended:
            copies.under_replicated.discard(key)
        return Repaired.MENDED if mended else Repaired.CONTENDED

    def _outcome(self, key: bytes, done: bool) -> Repaired:
        if not done:
            return Repaired.CONTENDED
        return Repaired.PARTIAL if key in self._copies.under_replicated else Repaired.MENDED
