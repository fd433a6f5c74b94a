"""A simulated session server: the pure put rule, expiry and notices; and it can forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from coatcheck.replication.effects import Accepted, GetReply, PutItem, PutReply, Refused, TakeItem, Unreachable
from coatcheck.replication.entry import Entry
from coatcheck.replication.notice import Notice
from coatcheck.replication.put_rule import Verdict, judge_entries, servers_to_notify
from coatcheck.replication.version import Version
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.schedule import EPOCH_MS, Process, Schedule
from coatcheck.take_once.rule import NEVER_STORED
from coatcheck.take_once.table import ItemTable

ACCEPTED = Accepted()
READ_ONLY = Unreachable("writes are refused")


class Post(Protocol):
    """Brings notices to web servers."""

    def notify(self, sender: ModelSessionServer, server_id: bytes, message: Notice) -> None: ...


class ModelSessionServer(Process):
    """Entries by key, with the moment of their end on this server's own clock."""

    MAX_UNDO = 64

    def __init__(
        self, name: str, schedule: Schedule, witness: Ledger, post: Post, expires_by_wall: bool = False
    ) -> None:
        super().__init__(name, schedule)
        self._witness = witness
        self._post = post
        self.expires_by_wall = expires_by_wall
        self.entries: dict[bytes, tuple[Entry, float]] = {}
        self._undo: list[tuple[bytes, tuple[Entry, float] | None]] = []
        self.run = 0
        """Counts restarts."""
        self.items = ItemTable()
        """What may be taken once; no restart leaves anything of it."""
        self.skew_ms = 0
        """How far its clock is off the true time; it does not matter to the entries."""
        self.read_only = False

    def look(self, key: bytes) -> Entry | None:
        row = self.entries.get(key)
        if row is None:
            return None
        if row[1] <= self.time_s:
            del self.entries[key]
            return None
        return row[0]

    def life_left_s(self, key: bytes) -> float | None:
        row = self.entries.get(key)
        return None if row is None else row[1] - self.time_s

    @property
    def time_s(self) -> float:
        """What entries end by: a steady clock, or (Redis) the one that may jump."""
        return self.schedule.now + (self.skew_ms / 1000 if self.expires_by_wall else 0.0)

    def wall_ms(self) -> float:
        """What it answers to TIME."""
        return EPOCH_MS + self.schedule.now * 1000 + self.skew_ms

    def jump(self, by_ms: int) -> None:
        self.skew_ms += by_ms
        ended = [key for key, row in self.entries.items() if row[1] <= self.time_s]
        for key in ended:
            del self.entries[key]
        self._undo = [one for one in self._undo if one[0] not in ended]
        self._witness.forgot(self, ended, silently=True)

    def get(self, key: bytes) -> GetReply:
        entry = self.look(key)
        return None if entry is None else self._with_life_left(key, entry)

    def put(self, key: bytes, seen: Version | None, new: Entry, notify: bytes = b"") -> PutReply:
        """Atomic: judged by the product's own rule, stored, and those told who must hear of it."""
        if self.read_only:
            return READ_ONLY
        old = self.look(key)
        verdict = judge_entries(old, seen, new)
        if verdict is Verdict.REFUSED:
            return Refused(None if old is None else self._with_life_left(key, old))
        self._undo.append((key, self.entries.get(key)))
        if len(self._undo) > self.MAX_UNDO:
            del self._undo[0]
        self.entries[key] = (new, self.time_s + max(1, new.expires_in_ms) / 1000)
        self._witness.stored(self, key, old, new)
        for server_id in servers_to_notify(verdict, None if old is None else old.header(), notify):
            self._post.notify(self, server_id, Notice(key, new.version, new.closed))
        return ACCEPTED

    def item(self, effect: PutItem | TakeItem) -> bool | bytes | None:
        """Atomic, by the product's own rule."""
        now_ms = int(self.schedule.now * 1000)
        if type(effect) is PutItem:
            return self.items.put(effect.key, effect.item, effect.life_ms, NEVER_STORED, now_ms)
        assert type(effect) is TakeItem
        taken = self.items.take(effect.key, effect.nonce, now_ms)
        if taken is not None:
            self._witness.taken(self, effect.key, effect.nonce)
        return taken

    def _with_life_left(self, key: bytes, entry: Entry) -> Entry:
        left_ms = int((self.entries[key][1] - self.time_s) * 1000)
        return Entry(entry.version, entry.history, entry.closed, left_ms, entry.payload, entry.provisional)

    # -- faults ----------------------------------------------------------------------------------

    def restart(self) -> None:
        self.alive = True
        self.frozen = False
        self.run += 1
        self.items = ItemTable()

    def restart_empty(self) -> None:
        self.restart()
        self.forget_all()

    def restart_stale(self, puts: int) -> None:
        self.restart()
        self.forget_some(puts)

    def forget(self, keys: Iterable[bytes] | None = None) -> None:
        if keys is None:
            self.forget_all(silently=True)
            return
        for key in keys:
            if self.entries.pop(key, None) is not None:
                self._undo = [one for one in self._undo if one[0] != key]
                self._witness.forgot(self, [key], silently=True)

    def forget_all(self, silently: bool = False) -> None:
        self.entries.clear()
        self._undo.clear()
        self._witness.forgot(self, silently=silently)

    def forget_some(self, puts: int) -> None:
        """The last ``puts`` are undone."""
        for _ in range(min(puts, len(self._undo))):
            key, row = self._undo.pop()
            if row is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = row
        self._witness.forgot(self)
