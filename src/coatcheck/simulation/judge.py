"""What web servers report, judged: is it true, and is it excused by a promise of protocol section 9?

Each excuse names its promise, and a campaign prints how often it was used: a check that never bites is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from coatcheck.events import Event, EventKind
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import QUORUM_FROM
from coatcheck.replication.version import History, Version, newest_write
from coatcheck.simulation.log import SessionLog, holds, quorum
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import EPOCH_MS, Schedule
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer

AGREE_MS = 2_000
"""Clocks that differ by less agree (protocol section 8)."""
UNASKED = object()
"""What stands for the reply of a session server that has not said anything."""


class Judge:
    """Judges what web servers report; the promises of section 8 say what is excused."""

    def __init__(self, scenario: Scenario, schedule: Schedule, trace: Trace) -> None:
        self.scenario = scenario
        self.schedule = schedule
        self.trace = trace
        self.logs: dict[bytes, SessionLog] = {}
        self.by_public: dict[str, SessionLog] = {}
        self.violations: list[str] = []
        self._moments = 0
        self.counts: Counter[str] = Counter()
        self.servers: Mapping[str, WatchedSessionServer] = {}
        self.leaving: set[str] = set()
        """Session servers that the operator has taken off the list."""
        self.longest_trip_s = 0.0
        self.skew_range_ms = 0
        self.disturbed = not scenario.faultless
        self.all_closing = 0
        """The last moment (Unix ms) of which somebody tried to say that all sessions begun by then are closed."""
        self._ids: dict[bytes, bytes] = {}
        self._takers: dict[bytes, bytes] = {}

    def is_closed_with_all(self, log: SessionLog) -> bool:
        """Whether nobody need serve a session any more, for an operator has closed, or tried to close, them all."""
        return 0 < log.created_ms <= self.all_closing

    def fail(self, invariant: str, text: str) -> None:
        self.violations.append(f"{invariant}: {text}")
        if self.trace.on:
            self.trace.add(self.schedule.now, f"VIOLATION {invariant}: {text}")

    def excuse(self, promise: str) -> None:
        self.counts[promise] += 1

    def say(self, text: str) -> None:
        self.trace.add(self.schedule.now, text)

    def moment(self) -> int:
        """Orders what happens at one time."""
        self._moments += 1
        return self._moments

    def log(self, key: bytes) -> SessionLog:
        log = self.logs.get(key)
        if log is None:
            log = self.logs[key] = SessionLog(key)
            self.by_public[log.public] = log
        return log

    def _judge_fork(self, log: SessionLog, lost: Version, old: History = (), new: History = ()) -> None:
        """Promise 1: an acknowledged write may be forked away only where rivals wrote below target.

        ``old`` and ``new`` are the histories of the two branches.
        """
        scenario = self.scenario
        if scenario.wanted * 2 <= scenario.session_servers:
            self.excuse("promise 1: fork, copies <= N/2")
        elif not scenario.keeps_quorums:
            self.excuse("promise 1: fork, acknowledged or served without a quorum")
        elif self.leaving:
            self.excuse("promise 1: fork, a session server was taken off the list")
        elif any(self._is_of_list_of_two(log, one) for one in log.blobs if holds(old, one) != holds(new, one)):
            # Whoever has still the list of two session servers writes with one of them, as two servers do.
            self.excuse("promise 1: fork, acknowledged by a list of two that became longer")
        elif lost in log.forgotten:
            self.excuse("promise 1: fork, a server forgot this very write")
        elif self._is_rival_forgotten(log, lost, {one.claim for one in log.blobs if holds(new, one) > holds(old, one)}):
            self.excuse("promise 1: fork, a server forgot the claim of the one branch and took the other")
        else:
            self.fail("I1", f"{self.trace.version(lost)} was forked away though every write reached a quorum")

    def _is_rival_forgotten(self, log: SessionLog, lost: Version, rivals: set[bytes]) -> bool:
        """Whether one of those that a write counts on had accepted a claim of the other branch, and forgot it."""
        return any(log.claims_forgotten.get(server, set()) & rivals for server in log.accepted_by.get(lost, ()))

    def _is_of_list_of_two(self, log: SessionLog, version: Version) -> bool:
        """Whether a write was put by a web server that knew of two session servers, and one of them sufficed it."""
        ack = log.acks.get(version)
        below = ack is None or ack.level < quorum(self.scenario.session_servers, self.scenario.wanted)
        return version in log.offers and log.offers[version].servers < QUORUM_FROM and below

    # -- what web servers report ---------------------------------------------------------------------

    def reported(self, web: WatchedWebServer, event: Event) -> None:
        if self.trace.on:
            log = self.by_public.get(event.session)
            self.say(f"{web.name} reports {event.kind.value} {self.trace.key(log.key) if log else ''} {event.detail}")
        self.counts["event " + event.kind.value] += 1
        log = self.by_public.get(event.session)
        if event.kind is EventKind.CORRUPT_ENTRY:
            self.fail("I4", f"{web.name} found a corrupt entry: {event.detail}")
        if log is None:
            return
        log.events.append((self.schedule.now, web.server_id, event.kind))
        if event.kind is EventKind.SESSION_FORKED:
            log.forked_by.add(web.server_id)
        elif event.kind is EventKind.BELOW_TARGET:
            log.below_target = True
            if not self.disturbed:
                self.fail("I6", "copies below target though nothing ever failed")
        elif event.kind is EventKind.SESSION_THEFT:
            self._judge_theft(log)
        elif event.kind is EventKind.SESSION_ROLLED_BACK:
            self._judge_rollback(web, log, event.detail)
        elif event.kind is EventKind.SESSION_NOT_FOUND:
            self._judge_not_found(web, log)
        elif event.kind is EventKind.HAND_OFF_REPLAYED:
            for one, site in log.issued_at_site.items():
                if site == web.site:
                    log.revoked.setdefault(one, self.schedule.now)
        elif event.kind is EventKind.SESSION_EXPIRED:
            self._judge_expiry(web, log)

    def _judge_theft(self, log: SessionLog) -> None:
        """Promise 4: no honest browser is accused if the grace is long enough."""
        log.willed = log.willed or self.scenario.theft == "close"
        if log.thief:
            self.excuse("promise 4: there is a thief")
            return
        scenario = self.scenario
        needed_s = self.longest_trip_s + scenario.lease_s + self.skew_range_ms / 1000
        if scenario.grace_ms == 0:
            self.excuse("promise 4: grace 0 and parallel requests")
        elif scenario.grace_ms / 1000 < needed_s:
            self.excuse("promise 4: grace shorter than the longest round trip")
        elif self.chain_may_fork(log):
            self.excuse("promise 4: the chain itself was lost or forked")
        else:
            self.fail("I5", f"an honest browser is accused of theft of {self.trace.key(log.key)}")

    def chain_may_fork(self, log: SessionLog) -> bool:
        """Whether two web servers may have moved the token chain on from different states (promise 1)."""
        if log.once_lost or log.given_up or log.out_of_sight or self.leaving:
            return True
        scenario = self.scenario
        if scenario.too_few_answers == "serve" or scenario.rolled_back == "accept" or scenario.durability != "all":
            return self.disturbed  # somebody may go on from an older state, with as many copies as are wanted
        alone = not scenario.keeps_quorums or any(self._is_of_list_of_two(log, one) for one in log.blobs)
        return log.below_target and alone

    def _judge_rollback(self, web: WatchedWebServer, log: SessionLog, detail: str) -> None:
        """Nothing that a session server still has is lost, whoever could see it."""
        wanted = _parse(detail)
        holders = self._holders(web, log, wanted)
        asked_at, replies = web.answered.get(log.key, (0.0, {}))
        # One that said what it has, without this write, may have got it since.
        told = [one for one in holders if answered(replies.get(one, UNASKED))]
        asked = [one for one in told if log.has_since.get((one, wanted), 0.0) <= asked_at]
        if holders and self.scenario.rolled_back == "accept" and not asked:
            self.excuse("promise 2: rollback reported, and accepted by the operator while its holders were away")
        elif holders and all(self._came_late(web, log, one, wanted) for one in holders):
            self.excuse("promise 2: rollback reported, forked away, and a late put brought it back after the look")
        elif holders:
            self.fail("I1", f"{self.trace.version(wanted)} reported as rolled back though {holders} have it")
        elif wanted in log.lost:
            self.excuse("promise 2: rollback reported, every holder forgot")
        elif wanted in log.forked_away:
            self.excuse("promise 2: rollback reported, forked away")
        elif log.reported(EventKind.SESSION_FORKED) and self._is_lapsed(log, wanted):
            self.excuse("promise 2: rollback reported, and its branch of a fork was ended for the loss of the other")
        elif self.is_expiring(log):
            self.excuse("promise 6: the newest copy has just expired")
        elif self.scenario.rolled_back == "accept" and self._closed_out_of_sight(web, log, replies):
            self.excuse("promise 3: rollback accepted by the operator while who holds the tombstone was away")
        else:
            self.fail("I1", f"{self.trace.version(wanted)} reported as rolled back though nothing was lost")

    def _came_late(self, web: WatchedWebServer, log: SessionLog, holder: str, version: Version) -> bool:
        """Whether a write that was forked away before a web server looked was shown to it by nobody, though all
        answered, and is on this session server only since then, by a put whose sender waited no more."""
        asked_at, replies = web.answered.get(log.key, (0.0, {}))
        all_answered = all(answered(replies.get(name, UNASKED)) for name in web.servers)
        shown = [web.had.get(log.key, ()), *(reply.history for reply in replies.values() if isinstance(reply, Entry))]
        if not all_answered or any(holds(history, version) for history in shown):
            return False
        entry = web.servers[holder].look(log.key)
        offer = log.offers.get(entry.version) if entry is not None else None
        since = log.has_since.get((holder, version), 0.0)
        late = offer is not None and since > max(asked_at, offer.until)
        return late and version in log.forked_away and log.forked_away[version] <= asked_at

    def _is_lapsed(self, log: SessionLog, version: Version) -> bool:
        """Whether a close that nobody willed covers it."""
        entries = [server.look(log.key) for server in self.servers.values()]
        return any(entry is not None and entry.provisional and holds(entry.history, version) for entry in entries)

    def _closed_out_of_sight(self, web: WatchedWebServer, log: SessionLog, replies: dict[str, Any]) -> bool:
        """Whether somebody closed the session, and no session server that answered this web server had been told."""
        closed = [name for name, server in web.servers.items() if (entry := server.look(log.key)) and entry.final]
        return bool(closed) and not any(answered(replies.get(name, UNASKED)) for name in closed)

    def _holders(self, web: WatchedWebServer, log: SessionLog, version: Version) -> list[str]:
        """The session servers of a web server's list that have a write in a live entry, be they up or not."""
        entries = {name: server.look(log.key) for name, server in web.servers.items()}
        return [name for name, entry in entries.items() if _alive(entry) and entry and holds(entry.history, version)]

    def _judge_not_found(self, web: WatchedWebServer, log: SessionLog) -> None:
        """A session that some server still has must not be declared absent."""
        asked_at, _ = web.answered.get(log.key, (0.0, {}))
        keepers = [
            name
            for name, server in web.servers.items()
            # What came back from a cache after the look was lost when it was looked for.
            if _alive(server.look(log.key)) and log.there_since.get(name, 0.0) <= asked_at
        ]
        came = [name for name, server in web.servers.items() if _alive(server.look(log.key)) and name not in keepers]
        if not keepers and any(self._came_back_since(log, web.servers[name], asked_at) for name in came):
            self.excuse("promise 1: every holder forgot, and a cache brought it back just after the look")
        elif not keepers:
            self._judge_expiry(web, log)
        elif self.is_expiring(log):
            self.excuse("promise 6: expiring")
        else:
            self.fail("I1", f"{self.trace.key(log.key)} declared absent though {keepers} have it")

    def _came_back_since(self, log: SessionLog, server: WatchedSessionServer, moment: float) -> bool:
        """Whether the newest write that a session server has was on none at a moment or since, and was found again."""
        entry = server.look(log.key)
        written = newest_write(entry.history) if entry is not None else None
        return written is not None and log.found_again.get(written, -1.0) >= moment

    def note_time(self, web: WatchedWebServer, log: SessionLog) -> None:
        """Remember that a web server which puts or judges this session has a wrong time."""
        log.misdated = log.misdated or abs(self.off_ms(web)) > self.skew_range_ms + AGREE_MS

    def off_ms(self, web: WatchedWebServer) -> float:
        """How far a web server's time is ahead of the true time."""
        return web.now_ms() - EPOCH_MS - self.schedule.now * 1000

    def _judge_expiry(self, web: WatchedWebServer, log: SessionLog) -> None:
        """No session ends before its time, clock skew apart (promise 6)."""
        self.note_time(web, log)
        if log.tombstones:
            self.excuse("promise 3: closing, holders of the tombstone unreachable")
        elif self._newest_is_lost(log):
            self.excuse("promise 1: every holder of the newest write forgot")
        elif self.scenario.durability == "async":
            self.excuse("async: nothing was promised")
        elif log.forked_away or log.reported(EventKind.SESSION_ROLLED_BACK):
            self.excuse("promise 2: the last activity was rolled back or forked away")
        elif self.is_expiring(log):
            self.excuse("promise 6: in time, clock skew apart")
        elif log.lapsed_in_time.get(web.name, -1.0) >= web.answered.get(log.key, (0.0, {}))[0]:
            self.excuse("promise 6: in time when it was ended, but somebody was faster and went on with it")
        elif self.scenario.damage == "clocks" and self.scenario.session_servers == 1 and log.misdated:
            # A web server that starts while the only session server's clock disagrees with its own takes the earlier.
            self.excuse("section 8: two clocks, and no majority")
        else:
            self.fail("I1", f"{self.trace.key(log.key)} ended before its time")

    def _newest_is_lost(self, log: SessionLog) -> bool:
        """Whether no session server has the newest write any more, so that the last activity is unknown."""
        entries = [entry for server in self.servers.values() if (entry := server.look(log.key)) is not None]
        kept = [one for one in log.blobs if any(holds(entry.history, one) for entry in entries if not entry.closed)]
        return bool(log.lost) and max(log.lost) == max([*log.lost, *kept])

    def is_expiring(self, log: SessionLog) -> bool:
        """Whether the session's own time is over, or may be by the clock that deviates most."""
        if log.last_active is None:
            return True
        return self.schedule.now >= self._ends_s(log, log.last_active, -self.skew_range_ms) - 0.01

    def is_over(self, log: SessionLog) -> bool:
        """Whether the session's own time is over, even by the clock that deviates most."""
        return log.last_active is not None and self.schedule.now >= self._ends_s(
            log, log.last_active, self.skew_range_ms
        )

    def _ends_s(self, log: SessionLog, last_active: float, skew_ms: int) -> float:
        """When the session ends, by a clock that is off by ``skew_ms``."""
        scenario = self.scenario
        ends_ms = [
            last_active * 1000 + scenario.idle_timeout_ms + scenario.leeway_ms,
            log.created_ms - EPOCH_MS + scenario.absolute_timeout_ms,
        ]
        if scenario.new_session_ms and not log.came_back:
            ends_ms.append(log.created_ms - EPOCH_MS + scenario.new_session_ms + scenario.leeway_ms)
        return (min(ends_ms) + skew_ms) / 1000


def _parse(detail: str) -> Version:
    """The version in ``token 3.ab12.1, newest copy ...``."""
    epoch, owner, seq = detail.split(",")[0].removeprefix("token ").split(".")
    return Version(int(epoch), bytes.fromhex(owner), int(seq))


def answered(reply: Any) -> bool:
    """Whether a session server said what it has, or that it has nothing."""
    return reply is None or isinstance(reply, Entry)


def _alive(entry: Entry | None) -> bool:
    return entry is not None and not entry.closed
