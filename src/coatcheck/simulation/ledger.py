"""The invariants of protocol section 9, judged after each step; what is excused is counted.

The promises of section 8 say what may happen all the same. Each excuse names its promise, and a campaign
prints how often it was used: a check that never bites is seen.
"""

from __future__ import annotations

from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.version import Version, newest_write
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.record import decode_data
from coatcheck.sessions.saving import Saved
from coatcheck.simulation.application import Attempt, Operation
from coatcheck.simulation.content import check_content
from coatcheck.simulation.judge import answered
from coatcheck.simulation.log import (
    Ack,
    Close,
    SessionLog,
    breaks_every_lease,
    forgotten,
    holds,
    quorum,
)
from coatcheck.simulation.put_judge import PutJudge, has_write, is_closed
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken

SLACK_S = 0.6
"""A token counts as shown when the app has answered, not when the request came; longer than any app thinks."""


class Ledger(PutJudge):
    """Sees everything, forgets nothing, and says which invariant broke."""

    def repairing(self, web: WatchedWebServer, key: bytes) -> None:
        if self.trace.on:
            self.say(f"{web.name} repairs {self.trace.key(key)}")

    def crashed(self, web: WatchedWebServer, error: Exception) -> None:
        self.fail("errors", f"a flow on {web.name} raised {error!r}")

    # -- what requests see ---------------------------------------------------------------------------

    def asking(self, web: WatchedWebServer, attempt: Attempt, token: SealedToken) -> None:
        self._note_trip(self.log(token.key), attempt)
        if self.trace.on:
            shown = f"token {token.session_id[:2].hex()} promising {self.trace.packed(token.version)}"
            self.say(f"#{attempt.number} {web.name} opens {self.trace.key(token.key)} with {shown}")

    def _note_trip(self, log: SessionLog, attempt: Attempt) -> None:
        """How long a request has been on its way."""
        log.longest_trip_s = max(log.longest_trip_s, self.schedule.now - attempt.sent_at)
        self.longest_trip_s = max(self.longest_trip_s, log.longest_trip_s)

    def opened(
        self,
        web: WatchedWebServer,
        attempt: Attempt,
        token: SealedToken,
        session: Session | None,
        began: float,
    ) -> None:
        """Invariants 2 and 3, for the session that one request gets.

        It is served from a lease if it has not asked itself: also from one that another request, or a repair, earned
        while it waited for its turn.
        """
        now = self.schedule.now
        log = self.log(token.key)
        log.shown.add(token.session_id)
        log.shows.append((now, token.session_id))
        self._note_trip(log, attempt)
        if session is None:
            told = any(event[0] >= began and event[1] == web.server_id for event in log.events)
            if not (log.tombstones or log.lapses or told or self.is_closed_with_all(log)):
                self.fail("I1", f"{self.trace.key(log.key)} refused to #{attempt.number} without a reason")
            return
        copy = session._request.copy_held
        assert copy is not None
        if self.scenario.sites and log.browser not in (None, attempt.browser):
            self.fail("H1", f"#{attempt.number} is served {self.trace.key(log.key)}, which is of another browser")
        by_lease = log.key not in attempt.asked_for
        if self.trace.on:
            how = "from its lease" if by_lease else "after asking"
            self.say(f"#{attempt.number} {web.name} serves {self.trace.version(copy.version)} {how}")
        self._check_promise(web, log, token, copy, began)
        self.check_closed_with_all(web, log, began)
        if log.revoked.get(token.session_id, now) < began and not by_lease and not self.chain_may_fork(log):
            self.fail("H5", f"#{attempt.number} is served by a token of a chain that was revoked")
        if session._request.verdict is Shown.IN_GRACE or session._request.verdict is Shown.LATE:
            self._check_dead(log, token)
        else:
            log.current_at[token.session_id] = now
        if log.closes:
            self._check_closed(web, log, copy, by_lease, attempt.moment)
        if by_lease:
            self.check_lease(web, log, copy)
        data_version = newest_write(copy.history)
        if data_version is not None and log.blobs.get(data_version) != session._request.blob:
            self.fail("I3", f"#{attempt.number} is served data that {self.trace.version(data_version)} does not have")

    def unheard(self, web: WatchedWebServer, attempt: Attempt, token: SealedToken) -> None:
        """The patience is over: the request is anonymous, the session is left alone."""
        self.counts["unheard: anonymous"] += 1
        if self.trace.on:
            self.say(f"#{attempt.number} {web.name} goes on without {self.trace.key(token.key)}, of which nobody heard")

    def _check_promise(
        self, web: WatchedWebServer, log: SessionLog, token: SealedToken, copy: Copy, began: float
    ) -> None:
        if not any(token.version):
            return
        promised = Version.unpack(token.version)
        if holds(copy.history, promised):
            return
        if forgotten(copy.history, promised):
            self.excuse("16 epochs: forgotten")
        elif log.reported(EventKind.SESSION_ROLLED_BACK, began, web.server_id):
            self.excuse("promise 2: answered after a rollback report")
        elif promised in log.forked_away or log.reported(EventKind.SESSION_FORKED, began, web.server_id):
            self.excuse("promise 2: answered after a fork was reported")
        else:
            self.fail("I3", f"{web.name} answers with less than the token's {self.trace.version(promised)}")

    def _check_dead(self, log: SessionLog, token: SealedToken) -> None:
        """Invariant 5: a token that its browser has moved on from is dead one grace later, unless it became current
        again meanwhile. Marks are soft, so this is judged where nothing loses them."""
        if not log.thief or self.scenario.theft == "report" or self.scenario.web_servers > 1 or self.disturbed:
            return
        order = list(log.issued)
        newer = set(order[order.index(token.session_id) + 1 :]) if token.session_id in log.issued else set()
        grace_s = self.scenario.grace_ms / 1000
        current_at = log.current_at.get(token.session_id, 0.0)
        times = [at for at, shown in log.shows if shown in newer and at > current_at]
        moved_on = [at for at in times if at > times[0] + grace_s + SLACK_S]
        if moved_on and self.schedule.now > moved_on[0] + grace_s + self.scenario.lease_s + SLACK_S:
            self.fail("I5", f"a stolen token of {self.trace.key(log.key)} is still taken")

    def _check_closed(self, web: WatchedWebServer, log: SessionLog, copy: Copy, by_lease: bool, began: int) -> None:
        """Invariant 2, within promise 3."""
        for close in log.closes:
            if began < close.moment:
                continue
            if by_lease:
                self.check_closed_lease(web, log, close, copy)
                continue
            asked_at, replies = web.answered.get(log.key, (0.0, {}))
            kept = (close.holders - close.lost) | log.tombstones_at(asked_at)
            if not kept:
                self.excuse("promise 3: every holder of the tombstone forgot it")
            elif any(name in web.servers and answered(replies.get(name)) for name in kept):
                # One that the operator took off the list is not asked: a tombstone that only it holds goes with it.
                self.fail("I2", f"{web.name} serves {self.trace.key(log.key)} though it saw a tombstone's holder")
            elif self.read_quorum_meets(web, kept):
                self.fail("I2", f"{web.name} serves {self.trace.key(log.key)}, whose tombstone no read quorum misses")
            else:
                self.excuse("promise 3: holders of the tombstone unreachable")

    def saved(
        self, web: WatchedWebServer, attempt: Attempt, session: Session, saved: Saved, before: bytes | None
    ) -> None:
        """What was acknowledged, and how well."""
        now = self.schedule.now
        if saved.closed is not None and before is not None:
            if self.counts_answers(web) and saved.closed.holds < web.copies.placement.write_quorum:
                self.fail(
                    "I2", f"{web.name} tells of a logout of {self.trace.key(before)} that others need not hear of"
                )
            self.closed(web, self.log(before), saved.closed.holds, attempt.began_at)
        if saved.closed is not None or (attempt.kind == "login" and session._request.login):
            for key in session._request.unheard:
                self.closed(web, self.log(key), 1, attempt.began_at)
        if attempt.kind == "login" and session._request.login and before is not None:
            self.closed(web, self.log(before), 1, attempt.began_at)
        operation = attempt.operation
        if operation is not None and saved.written is None and saved.closed is None and not operation.versions:
            self._already_stored(attempt, session, operation)
        if saved.written is None or operation is None or not operation.versions:
            return
        log, version = self.log(operation.session_key), operation.versions[-1]
        level, scenario = saved.written.level, self.scenario
        has_it = {name for name, server in self.servers.items() if has_write(server.look(log.key), version)}
        if len(log.accepted_by.get(version, set()) | has_it) < level:
            self.fail("I1", f"{self.trace.version(version)} acknowledged at {level}, but fewer have it")
        if scenario.below_target == "refuse" and scenario.durability == "all" and level < web.copies.placement.wanted:
            self.fail("I1", f"{self.trace.version(version)} acknowledged below target against the policy")
        if level == 0:
            self.excuse("async: acknowledged with no copy")
            return
        operation.acked_at = now
        log.acks[version] = Ack(now, level, web.server_id)
        if version not in self._kept(log):
            log.lose([version])  # who took it has forgotten it before the acknowledgement left
        needs_quorum = self.scenario.below_target == "quorum" and self.scenario.durability == "all"
        if needs_quorum and level < quorum(len(web.copies.placement.servers), scenario.wanted):
            self.fail("I1", f"{self.trace.version(version)} acknowledged at {level}, which is no quorum")
        if self.trace.on:
            self.say(f"#{attempt.number} {web.name} acknowledges {self.trace.version(version)} at {level}")

    def _already_stored(self, attempt: Attempt, session: Session, operation: Operation) -> None:
        """Acknowledged without a put of its own: then all of it must be in the state that it was answered with."""
        copy = session._request.copy_held
        written = newest_write(copy.history) if copy is not None else None
        if copy is None or written is None or written not in self.log(copy.key).blobs:
            return
        log = self.log(copy.key)
        if operation.kind == "delete" and not log.ever_set(operation.name, copy.history):
            # The state went back to before the key was set: nothing was deleted; with the other branch it may return.
            self.counts["deleted: never there"] += 1
            return
        operation.session_key = copy.key
        operation.versions.append(written)
        log.operations.append(operation)
        self.counts["acknowledged: already stored"] += 1
        problem = check_content(log, copy.history, decode_data(log.blobs[written]), self.scenario.conflict, self.counts)
        if problem:
            self.fail("I1", f"#{attempt.number} acknowledged, but {self.trace.version(written)} {problem}")

    def closed(self, web: WatchedWebServer, log: SessionLog, holds_count: int, began: float) -> None:
        holders = {name for name, server in self.servers.items() if is_closed(server.look(log.key))}
        if len(log.tombstone_on) < holds_count:
            self.fail(
                "I2", f"close of {self.trace.key(log.key)} reports {holds_count}; {sorted(log.tombstone_on)} had it"
            )
        if not self.disturbed and len(holders) < len(self.servers):
            self.fail("I2", f"the close of {self.trace.key(log.key)} reached {sorted(holders)} only, without any fault")
        servers = len(web.servers)
        effective = breaks_every_lease(holds_count, servers, web.copies.placement.wanted)
        log.closes.append(Close(self.moment(), began, self.schedule.now, holders, holds_count == servers, effective))
        if self.trace.on:
            self.say(f"{web.name} acknowledges the close of {self.trace.key(log.key)}, held by {sorted(holders)}")

    def issued(self, web: WatchedWebServer, attempt: Attempt, issue: Issue) -> None:
        """Invariant 5: at most one unshown successor per chain within a grace (an older one was lost); no ID twice."""
        token = issue.token
        log = self.log(token.key)
        if self._ids.setdefault(token.session_id, token.key) != token.key:
            self.fail("I5", "one session ID in two sessions")
        log.issued.setdefault(token.session_id, self.schedule.now)
        if issue.login:
            self.told_login(log)
        lost_before = self.schedule.now - max(0.0, self.scenario.grace_ms / 1000 - SLACK_S)
        log.issued_at_site.setdefault(token.session_id, web.site)
        if log.browser is None:
            log.browser = attempt.browser
        # Who arrives from another site is told a chain's newest link, and shows none: that is a root, not a successor.
        # What a revoked chain has issued is dead, and another chain has begun since.
        none = log.shown | log.arrived_with | log.revoked.keys()
        unshown = [
            one
            for one, at in log.issued.items()
            if one not in none and at > lost_before and log.issued_at_site[one] == web.site
        ]
        if len(unshown) > 1:
            if self.chain_may_fork(log) or self.scenario.wanted * 2 <= len(self.servers):
                self.excuse("promise 1: two successors after a loss or a fork")
            elif log.longest_trip_s > self.scenario.grace_ms / 1000:
                self.excuse("promise 4: two successors, and a request that took longer than the grace")
            else:
                self.fail("I5", f"{len(unshown)} unshown successors of {self.trace.key(log.key)}")
        if self.trace.on:
            self.say(f"#{attempt.number} {web.name} issues token {token.session_id[:2].hex()}")

    def handed_over(self, web: WatchedWebServer, attempt: Attempt, issue: Issue) -> None:
        """A ticket opens a session in the browser that has it, and none that is closed (protocol section 12)."""
        token = issue.token
        log = self.log(token.key)
        self.counts["handed over"] += 1
        self._note_trip(log, attempt)
        if log.browser is not attempt.browser:
            self.fail("H1", f"#{attempt.number} is given {self.trace.key(log.key)}, which is of another browser")
        if self._ids.setdefault(token.session_id, token.key) != token.key:
            self.fail("I5", "one session ID in two sessions")
        if log.issued_at_site.setdefault(token.session_id, web.site) != web.site:
            self.fail("H2", f"#{attempt.number} is given a token of another site")
        log.issued.setdefault(token.session_id, self.schedule.now)
        log.arrived_with.add(token.session_id)
        log.came_back = True
        log.last_active = attempt.began_at
        copy = web.copies.cache.get(log.key)
        if log.closes and copy is not None:
            self._check_closed(web, log, copy, log.key not in attempt.asked_for, attempt.moment)
        if self.trace.on:
            self.say(f"#{attempt.number} {web.name} hands token {token.session_id[:2].hex()} over")

    def taken(self, server: WatchedSessionServer, key: bytes, nonce: bytes) -> None:
        """An item is taken by one taker, whatever its session server forgets."""
        if self._takers.setdefault(key, nonce) != nonce:
            self.fail("H3", f"{server.name} lets two take one item")

    def responding(self, web: WatchedWebServer, attempt: Attempt, session: Session) -> None:
        self.counts["answers"] += 1
        if session._request.copy_held is not None:
            log = self.log(session._request.copy_held.key)
            log.came_back = log.came_back or session._request.login or log.last_active is not None
            log.last_active = attempt.began_at
