"""Whether a web server may serve a session without asking anyone (protocol section 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coatcheck.replication.cache import Copy
from coatcheck.replication.links import CHECK_EVERY_S
from coatcheck.replication.notice import Notice
from coatcheck.replication.placement import QUORUM_FROM
from coatcheck.replication.version import Version
from coatcheck.simulation.judge import UNASKED, answered
from coatcheck.simulation.log import Close, SessionLog, forgotten, holds, quorum
from coatcheck.simulation.users import UserJudge
from coatcheck.simulation.watched import WatchedWebServer

ROUNDING_S = 1e-6
FAR = float("inf")


class LeaseJudge(UserJudge):
    """Says when a lease is served that nobody has earned, or that has ended."""

    def heard(self, web: WatchedWebServer, notice: Notice, before: Any) -> None:
        """From now on only what was sent later may earn a lease, whatever the epoch of the notice is."""
        if self.trace.on:
            version = self.trace.version(notice.version)
            self.say(f"{web.name} hears that {self.trace.key(notice.key)} is now {version}{' CLOSED' * notice.closed}")
        if self.is_index(notice.key):
            return
        self.log(notice.key).heard.add(notice.version)
        own = before is not None and before.version.claim == notice.version.claim
        if not own and notice.version.server_id != web.server_id:
            web.noticed[notice.key] = self.schedule.now

    def lost_contact(self, web: WatchedWebServer, server: str) -> None:
        """No notice comes from there any more: what is served on that server's word must be checked again."""
        for copy in web.copies.cache:
            if copy.is_on(server):
                web.unsure[copy.key] = self.schedule.now

    def check_lease(self, web: WatchedWebServer, log: SessionLog, copy: Copy) -> None:
        """One answer from the cache, without asking."""
        earned_at = copy.lease_until - self.scenario.lease_s + ROUNDING_S
        version = self.trace.version(copy.version)
        if earned_at > web.checked[log.key] + 2 * ROUNDING_S:
            self.fail("lease", f"{web.name} counts the lease of {version} from later than it asked")
        if earned_at < web.noticed.get(log.key, 0.0):
            self.fail("lease", f"{web.name} serves {version} after a notice")
        if earned_at < web.unsure.get(log.key, 0.0):
            self.fail("lease", f"{web.name} serves {version} though it has lost contact with a holder")
        if earned_at < web.stalled_at:
            self.fail("lease", f"{web.name} serves {version} after a stall, unchecked")
        if len(log.accepted_by.get(copy.version, ())) < web.copies.placement.wanted:
            self.fail("lease", f"{version} is served from a lease that no full put has earned")
        if self.schedule.now >= copy.lease_until:
            self._check_prolonged(web, log, copy)
        self._check_age(web, log, copy)

    def _check_prolonged(self, web: WatchedWebServer, log: SessionLog, copy: Copy) -> None:
        """A lease goes on only while every link that is up was heard within one, and a read quorum of them is up."""
        self.counts["answers from leases that went on"] += 1
        lease_s, now = self.scenario.lease_s, self.schedule.now
        version = self.trace.version(copy.version)
        if now > copy.lease_until - lease_s + CHECK_EVERY_S + ROUNDING_S:
            self.fail("lease", f"{web.name} serves {version} unchecked for longer than {CHECK_EVERY_S:g} s")
        heard = web.links_heard()
        if heard is None:
            return
        if any(at + lease_s < now - ROUNDING_S for at in heard.values()):
            self.fail("lease", f"{web.name} serves {version} though it has not heard a link for a lease")
        if len(heard) < len(web.servers) - quorum(len(web.servers), web.copies.placement.wanted) + 1:
            self.fail("lease", f"{web.name} serves {version} on, though {list(heard)} are no read quorum")

    def check_closed_lease(self, web: WatchedWebServer, log: SessionLog, close: Close, copy: Copy) -> None:
        """Invariant 2, within promise 3: one answer from the cache after a close was told.

        Whoever closes waits for the leases that were earned before its tombstones were stored. A later one is earned
        only where the tombstone never was, or was forgotten; then those that kept it must have been out of reach.
        """
        earned_at = copy.lease_until - self.scenario.lease_s + ROUNDING_S
        name = self.trace.key(log.key)
        if self._rests_on_closed(web, log, copy, earned_at - 2 * ROUNDING_S):
            self.fail("I2", f"{web.name} has a lease of {name} on session servers that have its tombstone")
            return
        asked_at, replies = web.answered.get(log.key, (0.0, {}))
        if asked_at <= earned_at and self._saw_closed(web, log, asked_at - 2 * ROUNDING_S, replies):
            self.fail("I2", f"{web.name} has earned a lease of {name} though it saw a tombstone's holder")
            return
        if any(log.tombstone_on.get(server, FAR) > earned_at for server in web.servers):
            if not close.complete and not (close.effective and self.scenario.ordered):
                self.excuse("promise 3: the close was reported as incomplete")
            elif self.disturbed and log.claimed_at[copy.version.owner] >= close.began:
                self.excuse("promise 3: claimed by a rival while it was closed, and the notice was lost")
            else:
                self.fail("I2", f"{web.name} serves the closed {name} from its lease")
            return
        kept = log.tombstones_at(earned_at, earned_at + web.TIMEOUT_S)
        if self._saw_closed(web, log, asked_at, replies):
            self.fail("I2", f"{web.name} has a lease of {name} though it saw a tombstone's holder")
        elif self.read_quorum_meets(web, kept):
            self.fail("I2", f"{web.name} has a lease of {name}, whose tombstone no read quorum misses")
        elif not self.counts_answers(web) and kept.intersection(web.in_reach_at(log.key, earned_at)):
            self.fail("I2", f"{web.name} has a lease of {name} though it could ask a tombstone's holder")
        else:
            self.excuse("promise 3: a lease earned where the tombstone was forgotten, its holders unreachable")

    def _rests_on_closed(self, web: WatchedWebServer, log: SessionLog, copy: Copy, moment: float) -> bool:
        """Whether a lease cannot be without session servers that have had the tombstone since before it was earned:
        those that took its copy and had none are fewer than it needs. However few have it, they refuse the copy."""
        free = log.accepted_by.get(copy.version, set()) - log.tombstones_at(moment)
        return len(free) < web.copies.placement.wanted

    def _saw_closed(self, web: WatchedWebServer, log: SessionLog, moment: float, replies: Mapping[str, Any]) -> bool:
        """Whether a session server that had the tombstone at a moment, and has it still, gave one of these replies."""
        closed = log.tombstones_at(moment)
        return any(server in web.servers and answered(replies.get(server, UNASKED)) for server in closed)

    def read_quorum_meets(self, web: WatchedWebServer, holders: Iterable[str]) -> bool:
        """Whether every read quorum that this web server knows has one of these session servers."""
        placement = web.copies.placement
        known = sum(name in placement.servers for name in holders)
        return self.counts_answers(web) and known + placement.read_quorum > len(placement.servers)

    def counts_answers(self, web: WatchedWebServer) -> bool:
        """Whether fewer answers than a read quorum are refused."""
        return len(web.copies.placement.servers) >= QUORUM_FROM and self.scenario.too_few_answers == "refuse"

    def _check_age(self, web: WatchedWebServer, log: SessionLog, copy: Copy) -> None:
        """What others acknowledged longer ago than a lease must be in it."""
        scenario = self.scenario
        since = self.schedule.now - scenario.lease_s
        for version, ack in log.acks.items():
            if ack.at >= since or ack.owner == web.server_id or holds(copy.history, version):
                continue
            if forgotten(copy.history, version):
                continue
            given_up = version in log.forgotten or _forked(log, version)
            if ack.level < scenario.wanted or given_up or scenario.durability != "all":
                self.excuse("promise 1: stale lease of a rival cut off, below target")
            elif scenario.wanted * 2 <= scenario.session_servers:
                self.excuse("promise 1: stale lease of a rival cut off, copies <= N/2")
            elif not scenario.lingering and scenario.idle_timeout_ms < 60_000:
                self.excuse("promise 6: the newest copy expired before an older one (clocks differ)")
            else:
                self.fail("lease", f"{web.name} misses {self.trace.version(version)} for longer than a lease")


def _forked(log: SessionLog, version: Version) -> bool:
    """Whether a write is in a branch that somebody who reported the fork has given up."""
    return version in log.forked_away or any(log.gives_up(owner, version) for owner in log.given_up)
