"""What the simulation knows of users: what their indexes may list, and which of their sessions may live (protocol
section 11)."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.replication.effects import Put
from coatcheck.replication.entry import KEY_BYTES, Entry
from coatcheck.replication.version import Version
from coatcheck.sessions.everyone import NOBODY
from coatcheck.sessions.user_index import decode_index
from coatcheck.sessions.users import UserClosed
from coatcheck.simulation.judge import AGREE_MS, Judge
from coatcheck.simulation.log import SessionLog, breaks_every_lease
from coatcheck.simulation.schedule import EPOCH_MS
from coatcheck.simulation.watched import WatchedWebServer

USERS: Final = ("user0", "user1")


def index_key(user: str) -> bytes:
    return blake2b(user.encode(), digest_size=KEY_BYTES, person=b"simulated user").digest()


INDEX_KEYS: Final = {index_key(user): user for user in (*USERS, NOBODY)}


class UserJudge(Judge):
    """Invariants U1: a closed user has no session. U2: a limit holds. U3: an index lists its user's sessions alone.
    U4: it goes away with the last of them. U5: when everybody's sessions are closed, nobody is served an older one.

    U1, U2 and U5 hold where no index can be lost or forked: nothing ever failed; or every write meets every look (three
    session servers or more, copies above half of them), and none of them forgot an index.
    """

    index_forgotten = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.all_closed_at = float("inf")
        """When an operator was told that all are closed that were begun by :attr:`all_closed_before`."""
        self.all_closed_before = 0
        self.told: dict[bytes, float] = {}
        """When the token of each login was told for the first time."""
        self.index_put: dict[tuple[Version, int], tuple[float, float]] = {}
        """When a version of an index was last put with this life, and how late it had come until then (ms)."""
        self.index_late_ms: dict[Version, float] = {}
        """How long a version of an index was under way, from put to put: its life counts from when it is stored."""
        self.index_written: dict[Version, float] = {}
        """When a version of an index was put first (Unix ms): who was frozen may list what is over by then."""

    def is_index(self, key: bytes) -> bool:
        return key in INDEX_KEYS

    def _loses_no_index(self) -> bool:
        scenario = self.scenario
        meets = (
            scenario.session_servers >= 3
            and scenario.wanted * 2 > scenario.session_servers
            and scenario.below_target != "degrade"
            and scenario.too_few_answers == "refuse"
        )
        return not self.disturbed or (meets and not self.index_forgotten and not self.leaving)

    def putting_index(self, web: WatchedWebServer, effect: Put) -> None:
        """U3 and U4."""
        entry, user = effect.entry, INDEX_KEYS[effect.key]
        if self.trace.on:
            servers = ", ".join(effect.seen)
            self.say(f"{web.name} puts the index of {user} {self.trace.version(entry.version)}: {servers}")
        if entry.closed:
            self.fail("U4", f"the index of {user} is closed")
            return
        try:
            index = decode_index(web.sealer.unseal(effect.key, entry.header(), entry.payload))
        except CoatcheckError as error:
            self.fail("U3", f"the index of {user} holds something else: {error}")
            return
        for one in index.listed:
            log = self.logs.get(one.key)
            if log is None or log.user != user:
                self.fail("U3", f"the index of {user} lists {self.trace.key(one.key)}, which is not his")
            elif one.doomed:
                log.willed = True
        if user == NOBODY:
            self.all_closing = max(self.all_closing, index.closed_before)
        staying = {one.key for one in index.listed if not one.doomed}
        for log in self.logs.values():  # whoever finds another branch of this index closes what it lists
            if user in (NOBODY, log.user) and log.created_ms <= index.closed_before and log.key not in staying:
                log.willed = True
        longest_ms = self.scenario.absolute_timeout_ms
        now_ms = EPOCH_MS + self.schedule.now * 1000
        last = max([*(one.since for one in index.listed), index.closed_before, 0])
        over_ms = max(last + longest_ms, self.index_written.setdefault(entry.version, now_ms))
        slack_ms = self.scenario.session_policy().linger_ms + self.skew_range_ms + AGREE_MS
        late_ms = self.index_late_ms.get(entry.version, 0.0)
        self.index_put[entry.version, entry.expires_in_ms] = (self.schedule.now, late_ms)
        ends_ms = now_ms + entry.expires_in_ms
        if last and entry.version.seq and ends_ms > over_ms + slack_ms + late_ms:
            self.fail("U4", f"the index of {user} outlives all that it lists")

    def stored_index(self, new: Entry) -> None:
        """A put arrived: who reads it there and puts it elsewhere does not know how late it was."""
        at, late_ms = self.index_put.get((new.version, new.expires_in_ms), (self.schedule.now, 0.0))
        late_ms += (self.schedule.now - at) * 1000
        self.index_late_ms[new.version] = max(late_ms, self.index_late_ms.get(new.version, 0.0))

    def told_login(self, log: SessionLog) -> None:
        """U2: whoever is told of a login has no more sessions than are allowed."""
        if log.key in self.told or log.user is None:
            return
        self.told[log.key] = self.schedule.now
        limit = self.scenario.user_limit
        if not limit:
            return
        living = [key for key in self.told if self.logs[key].user == log.user and self.lives(self.logs[key])]
        if len(living) <= limit:
            self.counts["logins within a limit"] += 1
        elif self._loses_no_index():
            names = ", ".join(map(self.trace.key, living))
            self.fail("U2", f"{log.user} has {len(living)} sessions of {limit}: {names}")
        else:
            self.excuse("section 11: above the limit, for an index could be lost or forked")

    def closed_user(
        self, web: WatchedWebServer, user: str, but: bytes | None, began: float, closed: UserClosed
    ) -> None:
        """U1: what was told before the close began lives no more."""
        self.counts["users closed"] += closed.effective
        if not closed.effective:
            return
        if self.trace.on:
            self.say(f"{web.name} says that all sessions of {user} are closed")
        for key, told_at in self.told.items():
            log = self.logs[key]
            if log.user != user or key == but or told_at >= began:
                continue
            if not self.lives(log):
                self._note_close(web, log, began)
            elif self._loses_no_index():
                self.fail("U1", f"{user} was closed, and {self.trace.key(key)} lives")
            else:
                self.excuse("section 11: a session outlives its user's close, for the index could be lost or forked")

    def _note_close(self, web: WatchedWebServer, log: SessionLog, began: float) -> None:
        holders = log.tombstones_at(self.schedule.now)
        if breaks_every_lease(len(holders), len(web.servers), web.copies.placement.wanted):
            self.closed(web, log, len(holders), began)

    def closed(self, web: WatchedWebServer, log: SessionLog, holds_count: int, began: float) -> None:
        """A close was acknowledged."""
        raise NotImplementedError

    def closed_all(self, web: WatchedWebServer, closed_before: int) -> None:
        """An operator is told that everybody's sessions are closed."""
        self.counts["everybody closed"] += 1
        if self.trace.on:
            self.say(f"{web.name} says that everybody's sessions are closed")
        if closed_before > self.all_closed_before:
            self.all_closed_at, self.all_closed_before = self.schedule.now, closed_before

    def check_closed_with_all(self, web: WatchedWebServer, log: SessionLog, began: float) -> None:
        """U5, for a session that is served to a request that opened it at ``began``."""
        if began <= self.all_closed_at or log.created_ms > self.all_closed_before:
            return
        if self._loses_no_index():
            self.fail("U5", f"{web.name} serves {self.trace.key(log.key)}, though everybody's sessions were closed")
        else:
            self.excuse("section 11: a session outlives a close of all, for what says so could be lost or forked")

    def lives(self, log: SessionLog) -> bool:
        """Whether somebody could still be served from what is stored of it."""
        if self.is_closed_with_all(log):
            return False
        entries = [entry for server in self.servers.values() if (entry := server.look(log.key)) is not None]
        if not entries or any(entry.final for entry in entries):
            return False
        now_ms = EPOCH_MS + self.schedule.now * 1000
        return any(not entry.closed for entry in entries) and now_ms < max(log.expires_ms.values(), default=0)
