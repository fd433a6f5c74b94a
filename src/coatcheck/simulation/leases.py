"""Whether a web server may serve a session without asking anyone (protocol section 4)."""

from __future__ import annotations

from typing import Any

from coatcheck.replication.cache import Copy
from coatcheck.replication.notice import Notice
from coatcheck.simulation.judge import Judge
from coatcheck.simulation.log import SessionLog, forgotten, holds
from coatcheck.simulation.web_server import WebServer

ROUNDING_S = 1e-6


class LeaseJudge(Judge):
    """Says when a lease is served that nobody has earned, or that has ended."""

    def heard(self, web: WebServer, notice: Notice, before: Any) -> None:
        """From now on only what was sent later may earn a lease, whatever the epoch of the notice is."""
        if self.trace.on:
            version = self.trace.version(notice.version)
            self.say(f"{web.name} hears that {self.trace.key(notice.key)} is now {version}{' CLOSED' * notice.closed}")
        own = before is not None and before.version[:2] == notice.version[:2]
        if not own and notice.version.server_id != web.server_id:
            web.noticed[notice.key] = self.schedule.now

    def lost_contact(self, web: WebServer, server: str) -> None:
        """No notice comes from there any more: what is served on that server's word must be checked again."""
        for copy in web.copies.cache:
            if copy.seen.get(server) == copy.version:
                web.unsure[copy.key] = self.schedule.now

    def check_lease(self, web: WebServer, log: SessionLog, copy: Copy) -> None:
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
        self._check_age(web, log, copy)

    def _check_age(self, web: WebServer, log: SessionLog, copy: Copy) -> None:
        """What others acknowledged longer ago than a lease must be in it."""
        scenario = self.scenario
        since = self.schedule.now - scenario.lease_s
        for version, ack in log.acks.items():
            if ack.at >= since or ack.owner == web.server_id or holds(copy.history, version):
                continue
            if forgotten(copy.history, version):
                continue
            if log.below_target or log.data_lost or log.forked_by or scenario.durability != "all":
                self.excuse("promise 1: stale lease of a rival cut off, below target")
            elif scenario.wanted * 2 <= scenario.session_servers:
                self.excuse("promise 1: stale lease of a rival cut off, copies <= N/2")
            elif not scenario.lingering and scenario.idle_timeout_ms < 60_000:
                self.excuse("promise 6: the newest copy expired before an older one (clocks differ)")
            else:
                self.fail("lease", f"{web.name} misses {self.trace.version(version)} for longer than a lease")
