"""How a session ends: tombstones, put everywhere and remembered until they are (protocol section 6).

All methods here that return a ``Flow`` must run as the only flow of their key: inside :class:`Exclusive`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

import msgspec

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.effects import Accepted, Flow, Put, Refused, Settled, Surroundings
from coatcheck.replication.entry import Entry, Sealer, encode_header
from coatcheck.replication.hosting import Hosting
from coatcheck.replication.links import close_quorum
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.resolution import contains
from coatcheck.replication.version import History, Version, newest_write
from coatcheck.replication.view import View
from coatcheck.value import Value

FAR = float("inf")


class Lapsed(Enum):
    """What became of a session that was judged timed out."""

    CLOSED = "closed"
    USED = "used since then, elsewhere"
    UNHEARD = "a session server that may know of a later use is away"


class Closed(Value):
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


class Closes(Hosting):
    """Ends sessions: because somebody wills it, or because they have timed out."""

    MAX_CLOSING: ClassVar = 65_536

    def __init__(
        self,
        server_id: bytes,
        placement: Placement,
        policy: ReplicationPolicy,
        sealer: Sealer,
        world: Surroundings,
    ) -> None:
        super().__init__(server_id, placement, policy, sealer, world)
        self.closing: dict[bytes, Entry] = {}
        self._closing_until: dict[bytes, float] = {}
        """Monotonic seconds: when the first tombstone of each of :attr:`closing` ends, and all that it forbids."""
        self.partly_closed: set[bytes] = set()
        """Those of :attr:`closing` that too few session servers hold for the close to be effective."""

    # -- a session is closed ---------------------------------------------------------------------

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
            everywhere = dict.fromkeys(self.placement.servers)
            closed = yield from self.put_tombstone(key, tombstone, everywhere, notify=self.owners_shown(view))
        finally:
            self._claiming.pop(key, None)
        if not closed.holds:
            raise SessionUnavailable(UnavailableReason.NO_SERVER)
        # An owner that is not us may have renewed its lease until the tombstone reached it.
        alone = own is not None and own.no_lease_before < view.sent_at
        yield from self._wait_until(own.alone_at if own and alone else self._leases_over_at())
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
            yield from self._wait_until(self._leases_over_at())
        else:
            # Somebody else's close may still be waiting for leases: so do we, for what is left of it.
            age_s = (self.policy.tombstone_ms - tombstone.expires_in_ms) / 1000
            yield from self._wait_until(view.sent_at + max(0.0, self.policy.lease_over_s - max(0.0, age_s)))
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
            yield from self._wait_until(self._leases_over_at())
        self._note_effect(key, closed)
        return closed

    def _note_effect(self, key: bytes, closed: Closed) -> None:
        """Nobody can serve the session any more: that may be told."""
        if closed.effective:
            self.partly_closed.discard(key)
        if closed.complete:
            self._forget_closing(key)

    def _close_quorum(self) -> int:
        return close_quorum(self.placement, self.policy)

    def _must_be_effective(self, closed: Closed) -> None:
        if not closed.effective:
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)

    # -- a session has timed out -----------------------------------------------------------------

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
        yield from self.put_tombstone(key, tombstone, covered, notify=self.owners_shown(view))

    # -- tombstones ------------------------------------------------------------------------------

    def spread(self, view: View) -> Flow[Closed]:
        """Whoever sees a tombstone puts it on every session server that lacks it; a provisional one only over what it
        covers, by compare-and-set."""
        tombstone = view.newest
        assert tombstone is not None
        assert tombstone.closed
        lacking = {name: version for name, version in view.seen.items() if _lacks(view.entries.get(name), tombstone)}
        holds = len(view.seen) - len(lacking)
        return (yield from self.put_tombstone(view.key, tombstone, lacking, holds, self.owners_shown(view)))

    def put_tombstone(
        self,
        key: bytes,
        tombstone: Entry,
        seen: Mapping[str, Version | None],
        holds: int = 0,
        notify: bytes = b"",
    ) -> Flow[Closed]:
        """Put a tombstone on the servers of ``seen``; ``holds`` others have it already. The web servers ``notify`` hear
        of it from each that takes it, and the owner that is stored there."""
        if seen:
            settled: Settled = yield Put(key, tombstone, seen, notify=notify)
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


def _lacks(stored: Entry | None, tombstone: Entry) -> bool:
    """Whether a session server that holds ``stored`` must be given the tombstone."""
    if stored is None:
        return True
    if not tombstone.provisional:
        return not stored.final
    return not stored.closed and contains(tombstone, stored)
