"""How a copy gets to its session servers, and what their answers mean (protocol sections 3 to 5)."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from coatcheck.errors import CorruptEntry, SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Cache, Copy
from coatcheck.replication.effects import Accepted, Flow, Put, Refused, Settled, Surroundings
from coatcheck.replication.entry import Entry, Sealer, encode_header
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy


class Puts:
    """Seals copies, puts them where they belong, and notes who has them: what claims and writes have in common."""

    def __init__(
        self, placement: Placement, policy: ReplicationPolicy, sealer: Sealer, world: Surroundings, cache: Cache
    ) -> None:
        self._placement = placement
        self._policy = policy
        self._sealer = sealer
        self._world = world
        self._cache = cache
        self._linger_ms = policy.linger_ms
        self.under_replicated: set[bytes] = set()
        """Sessions with fewer copies than wanted."""
        self.unsettled: set[bytes] = set()
        """Sessions with a put that a session server did not take; repair looks at them."""
        self.contact = 0
        """Counts the times that contact with a session server was lost or found again."""
        self._lost: dict[str, int] = {}
        """Per session server, the last of these times."""
        self._lost_at: dict[str, float] = {}
        """When contact with a session server was last lost or found again: monotonic seconds."""
        self._no_lease_before = 0.0
        """What was sent before this moment earns no lease: notices may have been missed since."""

    def to_placed(
        self, copy: Copy, entry: Entry, holders: Sequence[str] = (), also: Sequence[str] = (), early: bool = False
    ) -> Flow[tuple[Settled, bool]]:
        """Put to the first reachable servers of the ranking until ``wanted`` hold it, ``holders`` included, and to
        ``also``; returns the replies, and whether anyone refused."""
        self.forget_lost(copy)
        key, last_seen = copy.key, copy.seen.get
        wanted = missing = self._placement.wanted - len(holders)
        total: Settled | None = None
        tried = holders
        while True:
            targets = self._reachable(key, missing, tried) if missing > 0 else []
            if total is None and also:
                targets += [name for name in also if name not in targets]
            if not targets:
                break
            settled: Settled = yield Put(key, entry, {name: last_seen(name) for name in targets}, 1 if early else None)
            if total is None:
                total = settled
            else:
                total.replies.update(settled.replies)
            if self.note_accepted(copy, settled):
                return total, True
            missing = wanted - total.accepted()
            if missing <= 0 or total.pending is not None:
                break
            tried = [*holders, *total.replies]
        return total or Settled(self._world.monotonic(), {}), False

    def _reachable(self, key: bytes, count: int, without: Iterable[str]) -> list[str]:
        """The first ``count`` reachable servers of the ranking, ``without`` these."""
        reachable = self._world.reachable
        found: list[str] = []
        for name in self._placement.ranking(key):
            if name not in without and reachable(name):
                found.append(name)
                if len(found) == count:
                    break
        return found

    def placed(self, key: bytes) -> list[str]:
        return self._reachable(key, self._placement.wanted, ())

    def placed_among(self, key: bytes, answered: Container[str]) -> list[str]:
        """Where a session belongs, of the servers that answered: one that is reachable again only now may have
        anything, and so would take the place of one that can be counted."""
        ranking = self._placement.ranking(key)
        return [name for name in ranking if name in answered][: self._placement.wanted]

    def sealed(self, copy: Copy, life_ms: int | None = None) -> Entry:
        """The copy as an entry. ``life_ms``: what is left until it expires, if that is known."""
        header = encode_header(copy.version, copy.history, False)
        payload = self._sealer.seal(copy.key, header, copy.body)
        if life_ms is None:
            life_ms = copy.expires_at - self._world.now_ms()
        return Entry(copy.version, copy.history, False, max(1, life_ms + self._linger_ms), payload)

    def note_accepted(self, copy: Copy, settled: Settled) -> bool:
        """Remember where the copy is; returns whether anyone refused it."""
        refused = False
        for server, reply in settled.replies.items():
            if isinstance(reply, Accepted):
                if settled.sent_at >= self._lost_at.get(server, 0.0):
                    copy.seen[server] = copy.version
                else:
                    self.unsettled.add(copy.key)
                continue
            self.unsettled.add(copy.key)
            if isinstance(reply, Refused):
                refused = refused or not self._is_forged_tombstone(copy.key, server, reply.stored)
        return refused

    def _is_forged_tombstone(self, key: bytes, server: str, stored: Entry | None) -> bool:
        """A real one ends the session; a forged one only takes its server out of the count, for it stays there."""
        if stored is None or not stored.closed:
            return False
        try:
            self._sealer.unseal(key, stored.header(), stored.payload)
        except CorruptEntry as corrupt:
            self._report(EventKind.CORRUPT_ENTRY, key, f"on {server}: {corrupt}")
            return True
        return False

    def lost_contact(self, server: str) -> None:
        """A session server went away or came back: what was put there until now may be gone, and notices with it."""
        self._lost_at[server] = self._world.monotonic()
        self.contact += 1
        self._lost[server] = self.contact
        self.distrust()

    def forget_lost(self, copy: Copy) -> None:
        """Take nothing for granted that a session server held before contact with it was lost or found again.

        Called before what was seen is used, so that losing a server costs nothing for sessions that nobody asks for.
        """
        if copy.contact == self.contact:
            return
        for server, lost in self._lost.items():
            if lost > copy.contact and copy.seen.get(server) == copy.version:
                del copy.seen[server]
                self.under_replicated.add(copy.key)
        copy.contact = self.contact

    def distrust(self) -> None:
        """Notices may have been missed: only what is sent from now on earns a lease."""
        self._no_lease_before = self._world.monotonic()

    def check_level(self, copy: Copy, level: int, quorum: bool) -> None:
        """Note whether ``level`` servers are as many as wanted.

        ``quorum``: whether what is to be acknowledged needs one, where the policy asks for it. Raises
        :class:`SessionUnavailable` if they are too few.
        """
        copy.under_replicated = level < self._placement.wanted
        if not copy.under_replicated:
            self.under_replicated.discard(copy.key)
            return
        self.under_replicated.add(copy.key)
        self._report(EventKind.BELOW_TARGET, copy.key, f"{level} of {self._placement.wanted} copies")
        lacks_quorum = self._policy.below_target == "quorum" and level < self._placement.write_quorum
        if self._policy.below_target == "refuse" or (quorum and lacks_quorum):
            raise SessionUnavailable(UnavailableReason.BELOW_TARGET)

    def earn_lease(self, copy: Copy, sent_at: float, holders: int) -> None:
        unbroken = sent_at >= max(copy.no_lease_before, self._no_lease_before)
        enough = unbroken and holders >= self._placement.wanted
        copy.lease_until = sent_at + self._policy.lease_s if enough else 0.0

    def _report(self, kind: EventKind, key: bytes, detail: str) -> None:
        self._world.report(Event(kind, public_id(key), detail))
