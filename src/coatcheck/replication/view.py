"""Looking at all copies of a session at once (protocol section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from coatcheck.errors import CorruptEntry, SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.absences import Absences
from coatcheck.replication.cache import Cache, Copy
from coatcheck.replication.effects import Flow, FreshKeys, Get, GetReply, Gotten, Surroundings, Unreachable
from coatcheck.replication.entry import WITHDRAWN_MS, Entry, Sealer
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.resolution import resolve
from coatcheck.replication.version import Version, covers


class View(msgspec.Struct):
    """What the session servers showed. ``body`` is the newest copy's record, opened; ``cached`` the own copy,
    if it took part. ``seen`` has an item for each server that answered."""

    key: bytes
    sent_at: float
    seen: dict[str, Version | None] = msgspec.field(default_factory=dict)
    entries: dict[str, Entry] = msgspec.field(default_factory=dict)
    avoid: set[str] = msgspec.field(default_factory=set)
    newest: Entry | None = None
    body: bytes = b""
    forked: bool = False
    cached: Copy | None = None

    def __repr__(self) -> str:
        return f"<View of session {public_id(self.key)}: {self.seen}>"

    def covered_somewhere(self, promised: Version | None) -> bool:
        """Whether any live copy that took part has the write ``promised``, be it the newest or not."""
        histories = [entry.history for entry in self.entries.values() if not entry.closed]
        if self.cached is not None:
            histories.append(self.cached.history)
        return any(covers(history, promised) for history in histories)

    def highest_epoch(self) -> int:
        epochs = [entry.version.epoch for entry in self.entries.values()]
        if self.cached is not None:
            epochs.append(self.cached.version.epoch)
        return max(epochs, default=0)

    def is_mine(self) -> bool:
        """Whether the own cached copy is still the newest of its claim, and no other owner shows anywhere."""
        own = self.cached
        return (
            own is not None
            and not own.spent
            and bool(self.entries)
            and all(
                entry.version.claim == own.version.claim and entry.version <= own.version
                for entry in self.entries.values()
            )
        )


class Viewer:
    """Reads the session servers and says which copy is the newest."""

    def __init__(
        self,
        placement: Placement,
        policy: ReplicationPolicy,
        sealer: Sealer,
        world: Surroundings,
        cache: Cache,
    ) -> None:
        self._placement = placement
        self._policy = policy
        self._sealer = sealer
        self._world = world
        self._cache = cache
        self.absences = Absences(world, policy.patience_s)
        self.merge: Callable[[Sequence[bytes]], bytes | None] | None = None
        """Says what becomes of a fork of what is no session: one body of those of all branches, the winner's first, or
        ``None`` where the winner's is to be gone on with alone."""

    def look(self, key: bytes) -> Flow[View]:
        """Ask all session servers at once: a read quorum is nearly all of them, however many there are.

        The own cached copy is one more candidate, so that a session whose copies were all lost comes
        back from the cache (mission B9). Raises :class:`SessionUnavailable` if nobody answers, or if a copy was sealed
        with a key that is not known here and that nobody can be asked about.
        """
        view = View(key, self._world.monotonic())
        gotten: Gotten = yield Get(key, self._placement.ranking(key))
        view.sent_at = min(view.sent_at, gotten.sent_at)
        for server, reply in gotten.replies.items():
            self._take(view, server, reply)
        if self._sealed_strangely(view):
            is_fresh: bool = yield FreshKeys()
            if not is_fresh:
                self._put_aside(view)
        self._judge(view)
        if not view.seen:
            raise SessionUnavailable(UnavailableReason.NO_SERVER)
        return view

    def _sealed_strangely(self, view: View) -> list[str]:
        """The servers that show a copy which was sealed with a key that is not known here."""
        return [server for server, entry in view.entries.items() if not self._sealer.knows(entry.payload)]

    def _put_aside(self, view: View) -> None:
        """Nobody could say whether there are newer keys: what these servers have may be the newest, so it is as if they
        had not answered."""
        for server in self._sealed_strangely(view):
            del view.entries[server], view.seen[server]
        if not view.seen:
            raise SessionUnavailable(UnavailableReason.KEYS)

    def enough_answered(self, view: View) -> bool:
        """Whether so many answered that at least one of them must have the newest acknowledged write."""
        return self._policy.too_few_answers == "serve" or len(view.seen) >= self._placement.read_quorum

    def missing(self, view: View) -> list[str]:
        """The session servers that did not answer. One with a forged tombstone did: there is nothing else to come."""
        return [name for name in self._placement.servers if name not in view.seen and name not in view.avoid]

    def _take(self, view: View, server: str, reply: GetReply) -> None:
        self.absences.note(server, not isinstance(reply, Unreachable))
        if isinstance(reply, Unreachable):
            return
        if reply is None or reply.expires_in_ms <= WITHDRAWN_MS:
            view.seen[server] = None  # nothing, or withdrawn, and gone before anybody could do something with it
            return
        view.seen[server] = reply.version
        view.entries[server] = reply

    def _judge(self, view: View) -> None:
        own = self._cache.candidate(view.key)
        if own is not None and own.expires_at <= self._world.now_ms():
            self._cache.drop(view.key)  # what others wrote since then has expired too: absent, not rolled back
            own = None
        view.cached = own
        bodies = self._authentic(view)
        candidates = list(view.entries.values())
        if own is not None:
            candidates.append(own.as_entry())
        resolution = resolve(candidates)
        if resolution is None:
            view.newest = None
            return
        view.newest, view.forked = self._longest_living(view, resolution.newest), resolution.forked
        if own is not None and _is_copy_of(view.newest, own):
            view.body = own.body
        else:
            view.body = next(body for entry, body in bodies if _same(entry, view.newest))
        if view.forked and self.merge is not None:
            branches = [body for entry, body in bodies if not entry.closed]
            if own is not None:
                branches.append(own.body)
            view.body = self.merge([view.body, *branches]) or view.body

    def _longest_living(self, view: View, newest: Entry) -> Entry:
        """The same entry as it is on the server that keeps it longest: where a session server's clock jumps ahead,
        little is left of each life there, and copying that would end the session everywhere."""
        alike = [entry for entry in view.entries.values() if _same(entry, newest)]
        return max(alike, key=lambda entry: entry.expires_in_ms, default=newest)

    def _authentic(self, view: View) -> list[tuple[Entry, bytes]]:
        """The stored entries with their records, opened; but those that are the own copy are not looked into.

        What we did not seal proves nothing, not even by its number: it is left out. A forged tombstone blocks
        its server, for none would ever replace it.
        """
        opened: list[tuple[Entry, bytes]] = []
        for server, entry in list(view.entries.items()):
            if view.cached is not None and _is_copy_of(entry, view.cached):
                continue
            if any(_same(entry, other) for other, _ in opened):
                continue
            try:
                opened.append((entry, self._sealer.unseal(view.key, entry.header(), entry.payload)))
            except CorruptEntry as corrupt:
                del view.entries[server]
                if entry.closed:
                    view.avoid.add(server)
                    del view.seen[server]
                self._world.report(Event(EventKind.CORRUPT_ENTRY, public_id(view.key), f"on {server}: {corrupt}"))
        return opened


def _is_copy_of(entry: Entry, own: Copy) -> bool:
    return entry.version == own.version and entry.history == own.history and not entry.closed


def _same(one: Entry, other: Entry) -> bool:
    """Whether two servers hold the same; the life that is left may differ."""
    return (
        one.version == other.version
        and one.closed == other.closed
        and one.history == other.history
        and one.payload == other.payload
    )
