"""How a copy gets to its session servers, and what their answers mean (protocol sections 3 to 5)."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence

from coatcheck.errors import CorruptEntry, SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Cache, Copy
from coatcheck.replication.effects import Accepted, Flow, Put, Refused, Settled, Surroundings
from coatcheck.replication.entry import Entry, Sealer, encode_header
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.version import History, Version


class KeySet(dict[bytes, None]):
    """Keys of sessions in the order in which they came: that of a set differs from process to process, and a history
    of the simulation has to be the same in each."""

    def add(self, key: bytes) -> None:
        self[key] = None

    def discard(self, key: bytes) -> None:
        self.pop(key, None)


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
        self.under_replicated = KeySet()
        """Sessions with fewer copies than wanted."""
        self.unsettled = KeySet()
        """Sessions with a put that a session server did not take; repair looks at them."""
        self.contact = 0
        """Counts the times that contact with a session server was lost or found again."""
        self._lost: dict[str, int] = {}
        """Per session server, the last of these times."""
        self._lost_at: dict[str, float] = {}
        """When contact with a session server was last lost or found again: monotonic seconds."""
        self._no_lease_before = 0.0
        """What was sent before this moment earns no lease: notices may have been missed since."""

    def first(
        self,
        copy: Copy,
        entry: Entry,
        holders: Sequence[str] = (),
        also: Sequence[str] = (),
        enough: int | None = None,
        notify: bytes = b"",
    ) -> Put | None:
        """The put to the first reachable servers of the ranking, so many that ``wanted`` hold it, ``holders`` included,
        and to ``also``; ``None`` if that is nobody."""
        missing = self._placement.wanted - len(holders)
        targets = self.next_reachable(copy.key, missing, holders) if missing > 0 else []
        if also:
            targets += [name for name in also if name not in targets]
        if not targets:
            return None
        return Put(copy.key, entry, copy.seen_on_each(tuple(targets)), enough, notify)

    def complete(
        self,
        copy: Copy,
        entry: Entry,
        level: int | None,
        total: Settled,
        holders: Sequence[str] = (),
        notify: bytes = b"",
    ) -> Flow[int | None]:
        """Put to the next servers of the ranking while fewer than ``wanted`` hold the entry; ``total`` has the replies
        to the first put, which ``level`` took, and gets the others. Answers how many took it; ``None``: somebody
        refused it, or another web server has said meanwhile that it hosts the session: servers that hold nothing of it
        would take what those that know of the claim refuse."""
        wanted = self._placement.wanted - len(holders)
        while level is not None and level < wanted and total.pending is None:
            if self._has_moved(copy.key):
                return None
            targets = self.next_reachable(copy.key, wanted - level, [*holders, *total.replies])
            if not targets:
                break
            settled: Settled = yield Put(copy.key, entry, copy.seen_on_each(tuple(targets)), notify=notify)
            total.replies.update(settled.replies)
            taken = self.note_accepted(copy, entry.version, settled)
            level = None if taken is None or self._has_moved(copy.key) else level + taken
        return level

    def _has_moved(self, key: bytes) -> bool:
        """Whether the copy that is hosted here was claimed by another web server, as far as has been heard."""
        hosted = self._cache.get(key)
        return hosted is not None and hosted.moved

    def confirm(self, copy: Copy, entry: Entry, takers: Sequence[str]) -> Flow[int | None]:
        """Make sure that those who took an entry have it all at one moment: they are offered it once more, which
        changes nothing where it is. Answers how many have it; ``None``: somebody has it no more."""
        if len(takers) < 2:
            return len(takers)
        settled: Settled = yield Put(copy.key, entry, dict.fromkeys(takers, entry.version))
        return self.note_accepted(copy, entry.version, settled)

    def to_placed(
        self, copy: Copy, entry: Entry, holders: Sequence[str], also: Sequence[str], notify: bytes
    ) -> Flow[tuple[Settled, int | None]]:
        """Put to the first reachable servers of the ranking until ``wanted`` hold it, ``holders`` included, and to
        ``also``; returns the replies, and how many took it (``None``: somebody refused it). ``notify``: as in
        :class:`Put`."""
        self.forget_lost(copy)
        put = self.first(copy, entry, holders, also, notify=notify)
        settled: Settled = Settled(self._world.monotonic(), {}) if put is None else (yield put)
        level = self.note_accepted(copy, entry.version, settled)
        return settled, (yield from self.complete(copy, entry, level, settled, holders, notify))

    def next_reachable(self, key: bytes, count: int, without: Collection[str]) -> list[str]:
        """The first ``count`` reachable servers of the ranking, ``without`` these."""
        ranking: Iterable[str] = self._placement.ranking(key)
        if without:
            ranking = [name for name in ranking if name not in without]
        reachable, found = self._world.reachable, list[str]()
        for name in ranking:
            if reachable(name):
                found.append(name)
                if len(found) == count:
                    break
        return found

    def placed(self, key: bytes) -> list[str]:
        return self.next_reachable(key, self._placement.wanted, ())

    def placed_among(self, key: bytes, answered: Container[str]) -> list[str]:
        """Where a session belongs, of the servers that answered: one that is reachable again only now may have
        anything, and so would take the place of one that can be counted."""
        ranking = self._placement.ranking(key)
        return [name for name in ranking if name in answered][: self._placement.wanted]

    def sealed(self, copy: Copy) -> Entry:
        """The copy as an entry, with the life that it has left."""
        life_ms = copy.expires_at - self._world.now_ms()
        return self.seal(copy.key, copy.version, copy.history, copy.body, life_ms)

    def seal(self, key: bytes, version: Version, history: History, body: bytes, life_ms: int) -> Entry:
        """An entry of a live session. ``life_ms``: what is left until it expires."""
        payload = self._sealer.seal(key, encode_header(version, history, False), body)
        return Entry(version, history, False, max(1, life_ms + self._linger_ms), payload)

    def note_accepted(self, copy: Copy, version: Version, settled: Settled) -> int | None:
        """Remember where this version of the copy is; returns how many took it, ``None`` if anyone refused it."""
        taken, refused = 0, False
        holders = []
        for server, reply in settled.replies.items():
            if type(reply) is Accepted:
                taken += 1
                if server not in self._lost_at or settled.sent_at >= self._lost_at[server]:
                    holders.append(server)
                else:
                    self.unsettled.add(copy.key)
                continue
            self.unsettled.add(copy.key)
            if isinstance(reply, Refused):
                refused = refused or not self._is_forged_tombstone(copy.key, server, reply.stored)
        if holders:
            copy.stored_on(holders, version)
        return None if refused else taken

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
            if lost > copy.contact and copy.is_on(server):
                copy.saw({server: None})
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
        if level >= self._placement.wanted:
            self.under_replicated.discard(copy.key)
            return
        self.under_replicated.add(copy.key)
        self._report(EventKind.BELOW_TARGET, copy.key, f"{level} of {self._placement.wanted} copies")
        lacks_quorum = self._policy.below_target == "quorum" and level < self._placement.write_quorum
        if self._policy.below_target == "refuse" or (quorum and lacks_quorum):
            raise SessionUnavailable(UnavailableReason.BELOW_TARGET)

    def earn_lease(self, copy: Copy, sent_at: float, holders: int) -> None:
        unbroken = sent_at >= copy.no_lease_before and sent_at >= self._no_lease_before
        enough = unbroken and holders >= self._placement.wanted
        copy.lease_until = sent_at + self._policy.lease_s if enough else 0.0

    def _report(self, kind: EventKind, key: bytes, detail: str) -> None:
        self._world.report(Event(kind, public_id(key), detail))
