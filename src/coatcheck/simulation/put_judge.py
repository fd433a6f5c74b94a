"""What web servers put and session servers store, judged after each step by the invariants of protocol section 9."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.events import EventKind
from coatcheck.replication.effects import Put
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import Placement
from coatcheck.replication.version import Version, newest_write
from coatcheck.sessions.record import decode_data, decode_record
from coatcheck.simulation.application import Attempt, Kind, Operation
from coatcheck.simulation.content import check_content
from coatcheck.simulation.judge import UNASKED, answered
from coatcheck.simulation.leases import LeaseJudge
from coatcheck.simulation.log import (
    OfferedVersion,
    SessionLog,
    forgotten,
    holds,
)
from coatcheck.simulation.schedule import EPOCH_MS
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer
from coatcheck.simulation.withdrawals import check_withdrawal

MOST_OFF_MS = 1_000.0
"""A web server knows the farm's time to half a round trip, and heeds none of more than two seconds (section 8). Said
again here."""
WILLED: tuple[Kind, ...] = ("login", "logout", "close_user", "close_others")


class PutJudge(LeaseJudge):
    """Sees each put and what becomes of it."""

    # -- what web servers put -----------------------------------------------------------------------

    def putting(self, web: WatchedWebServer, context: Any, effect: Put) -> None:
        """Invariant 4: no two payloads carry one version; a claim changes no data; a write holds what it should."""
        entry = effect.entry
        if self.is_index(effect.key):
            self.putting_index(web, effect)
            return
        log = self.log(effect.key)
        identity = (entry.version, entry.closed)
        if self.trace.on:
            what = "tombstone" if entry.closed else "claim" if entry.version.seq == 0 else "write"
            seen = ", ".join(f"{name} (saw {self.trace.version(v)})" for name, v in effect.seen.items())
            self.say(f"{web.name} puts {what} {self.trace.version(entry.version)} of {self.trace.key(log.key)}: {seen}")
        offer = log.offers.get(entry.version)
        if offer is None:
            servers = len(web.copies.placement.servers)
            offer = OfferedVersion(self.schedule.now, servers, self._lacks_ms(web, log, entry.version))
            log.offers[entry.version] = offer
        offer.until = self.schedule.now + web.TIMEOUT_S
        if entry.version.server_id == web.server_id:
            # Each put of its owner has the life that is left by the time which that one takes for the farm's.
            offer.ahead_ms = max(offer.ahead_ms, min(self.off_ms(web), MOST_OFF_MS))
        check_withdrawal(self, web, log, effect)
        known = log.payloads.get(identity)
        if known is not None:
            if known != entry.payload and self._body(web, effect.key, entry) != self._body_of(web, log, entry, known):
                self.fail("I4", f"two payloads carry version {self.trace.version(entry.version)}")
            return
        log.payloads[identity] = entry.payload
        self.note_time(web, log)
        if entry.version.seq == 0:
            self._check_epoch(web, log, entry.version)
        if entry.closed:
            self._check_tombstone_life(log, entry)
            self._closing(web, log, entry, context)
            return
        body = self._body(web, effect.key, entry)
        try:
            record = decode_record(body)
        except CoatcheckError as corrupt:
            self.fail("I4", f"{self.trace.version(entry.version)} carries no record: {corrupt}")
            return
        log.expires_ms[entry.version] = record.expires_at(web.lifecycle.policy)
        if entry.version.seq == 0:
            self._note_branches(web, log, entry)
            self._note_out_of_sight(web, log, entry)
            written = newest_write(entry.history)
            if written is not None and written in log.blobs and log.blobs[written] != record.data:
                self.fail("I4", f"the claim {self.trace.version(entry.version)} changes data")
            return
        self._note_write(log, entry, record.data, context)
        log.created_ms = record.created_at
        log.user = record.user

    def _lacks_ms(self, web: WatchedWebServer, log: SessionLog, version: Version) -> float:
        """How much of its record's life the owner of a version that is put for the first time may lack: a write lacks
        nothing; a claim lacks what the copies lacked from which its owner took the life that is left, and as much as
        that one's time is behind now, for by that it noted the end."""
        if version.seq:
            return 0.0
        _, replies = web.answered.get(log.key, (0.0, {}))
        shown = {reply.version for reply in replies.values() if isinstance(reply, Entry)}
        taken = [offer for one, offer in log.offers.items() if one in shown or one.server_id == web.server_id]
        behind_ms = min(max(0.0, -self.off_ms(web)), MOST_OFF_MS)
        return behind_ms + max((offer.short_ms for offer in taken), default=0.0)

    def looking(self, web: WatchedWebServer, key: bytes, attempt: Attempt | None) -> None:
        """A web server asks for all copies, for a request or for nobody's; its own is one more of them."""
        if attempt is not None:
            attempt.asked_for.add(key)
        own = web.copies.cache.candidate(key)
        web.had[key] = own.history if own is not None else ()

    def _note_branches(self, web: WatchedWebServer, log: SessionLog, claim: Entry) -> None:
        """Which branches a claim gives up, whose web server has reported a fork since it looked."""
        asked_at, replies = web.answered.get(log.key, (0.0, {}))
        if not log.reported(EventKind.SESSION_FORKED, asked_at, web.server_id):
            return
        saw = [reply.history for reply in replies.values() if isinstance(reply, Entry) and not reply.closed]
        branches = [history for history in (*saw, web.had.get(log.key, ())) if history]
        given_up = [history for history in branches if not holds(claim.history, history[-1])]
        log.given_up.setdefault(claim.version.owner, []).extend(given_up)

    def _note_out_of_sight(self, web: WatchedWebServer, log: SessionLog, claim: Entry) -> None:
        """Which writes a claim goes on without that one session server forgot, and the others that have them were not
        there to say so: two faults at once, where the copies outlive one."""
        if log.key not in web.answered:
            return
        _, replies = web.answered[log.key]
        for one in log.forgotten:
            keepers = self._holders(web, log, one)
            is_kept = holds(claim.history, one) or forgotten(claim.history, one)
            if keepers and not is_kept and not any(answered(replies.get(name, UNASKED)) for name in keepers):
                log.out_of_sight.add(one)

    def _check_epoch(self, web: WatchedWebServer, log: SessionLog, version: Version) -> None:
        """Invariant 4: whoever claims or closes takes an epoch above all that it has tried before."""
        tried = log.tried.get(web.server_id, 0)
        if version.epoch <= tried:
            self.fail("I4", f"{web.name} tries epoch {version.epoch} of {self.trace.key(log.key)} after {tried}")
        log.tried[web.server_id] = version.epoch

    def _check_tombstone_life(self, log: SessionLog, tombstone: Entry) -> None:
        """Invariant 2: a tombstone outlives the session's tokens, and every entry that it forbids."""
        if not log.created_ms:
            return  # the creation was never acknowledged, nor is anything known of it
        scenario = self.scenario
        ends_ms = EPOCH_MS + self.schedule.now * 1000 + tombstone.expires_in_ms + self.skew_range_ms
        lingering_ms = scenario.session_policy().linger_ms if scenario.lingering else 0
        if ends_ms < log.created_ms + scenario.absolute_timeout_ms + lingering_ms:
            self.fail("I2", f"the tombstone {self.trace.version(tombstone.version)} ends before what it forbids")

    def _closing(self, web: WatchedWebServer, log: SessionLog, entry: Entry, attempt: Attempt | None) -> None:
        """A new tombstone: final only if somebody willed it."""
        if entry.provisional:
            log.lapses += 1
            if self.is_expiring(log):
                log.lapsed_in_time[web.name] = self.schedule.now
            return
        log.tombstones += 1
        log.tombstone_until = min(log.tombstone_until, self.schedule.now + entry.expires_in_ms / 1000)
        if not log.willed and (attempt is None or attempt.kind not in WILLED):
            self.fail("I2", f"{self.trace.key(log.key)} is closed for good, though nobody willed it")

    def _note_write(self, log: SessionLog, entry: Entry, blob: bytes, attempt: Attempt | None) -> None:
        version = entry.version
        log.blobs[version] = blob
        if attempt is None:
            self.fail("I4", f"a repair wrote data as {self.trace.version(version)}")
            return
        data = decode_data(blob)
        operation = attempt.operation
        if operation is not None and (not operation.session_key or operation.session_key == log.key):
            if not operation.versions:
                operation.session_key = log.key
                log.operations.append(operation)
            operation.versions.append(version)
        if len(log.blobs) == 1 and attempt.kind == "login":
            log.operations.extend(_inherited(data, version, log.key))
        problem = check_content(log, entry.history, data, self.scenario.conflict, self.counts)
        if problem:
            self.fail("I1", f"{self.trace.version(version)} {problem}")

    def _body(self, web: WatchedWebServer, key: bytes, entry: Entry) -> bytes:
        return web.sealer.unseal(key, entry.header(), entry.payload)

    def _body_of(self, web: WatchedWebServer, log: SessionLog, entry: Entry, payload: bytes) -> bytes | None:
        try:
            return web.sealer.unseal(log.key, entry.header(), payload)
        except CoatcheckError:
            return None  # another history under the same version

    # -- what session servers store -----------------------------------------------------------------

    def stored(self, server: WatchedSessionServer, key: bytes, old: Entry | None, new: Entry) -> None:
        """Invariant 4: a stored entry never loses what it covered, except to a reported fork."""
        if self.is_index(key):
            self.stored_index(new)
            return
        log = self.log(key)
        log.accepted_by.setdefault(new.version, set()).add(server.name)
        came_late = new.version in log.offers and self.schedule.now > log.offers[new.version].until
        if not came_late:  # what was sent before it vanished is no sign that anybody has noticed
            log.vanished_on.discard(server.name)
        if old is None:
            log.there_since[server.name] = self.schedule.now
            log.has_since = {one: since for one, since in log.has_since.items() if one[0] != server.name}
        self._note_writes(server, log, new)
        if came_late:
            log.came_late.add((server.name, new.version))
        log.claimed_at.setdefault(new.version.owner, self.schedule.now)
        if self.trace.on:
            what = " LAPSED" if new.provisional else " CLOSED" if new.closed else ""
            self.say(f"{server.name} stores {self.trace.version(new.version)}{what}")
        log.on[server.name] = new
        if new.final:
            log.tombstone_on.setdefault(server.name, self.schedule.now)
            log.tombstone_since.setdefault(server.name, self.schedule.now)
            return
        if old is not None and old.final:
            self.fail("I2", f"{server.name} overwrites a tombstone with {self.trace.version(new.version)}")
            return
        if new.closed:
            self._check_lapse(server, log, old, new)
            return
        self._note_kept(server, log, new)
        if old is None:
            self._check_life(log, new)
            return
        if old.closed:
            self._check_revival(server, log, old, new)
            return
        if new.version.owner in log.given_up:
            self._note_forked_away(log, old)
        had = newest_write(old.history)
        if had is None or holds(new.history, had) or forgotten(new.history, had):
            return
        if not log.gives_up(new.version.owner, had):
            versions = f"{self.trace.version(had)} to {self.trace.version(new.version)}"
            self.fail("I4", f"{server.name} loses {versions} and no fork was reported")
        elif had in log.acks or self._told(log, had):
            self._judge_fork(log, had, old.history, new.history)

    def _note_kept(self, server: WatchedSessionServer, log: SessionLog, new: Entry) -> None:
        """What a cache brings back is lost no more; what only a server has that the operator gives up, is. What is put
        once more is forked away no more; what only comes late is."""
        offered_at = log.offers[new.version].since if new.version in log.offers else 0.0
        for one in [one for one, since in log.forked_away.items() if offered_at > since and holds(new.history, one)]:
            del log.forked_away[one]
        if server.name not in self.leaving:
            found = {one for one in log.lost if holds(new.history, one)}
            log.found_again.update(dict.fromkeys(found, self.schedule.now))
            log.lost -= found
        elif new.version in log.blobs and new.version not in self._kept(log):
            log.lose([new.version])

    def _check_lapse(self, server: WatchedSessionServer, log: SessionLog, old: Entry | None, new: Entry) -> None:
        """A close that nobody willed destroys nothing that a session server still holds as acknowledged."""
        if old is None or old.closed:
            return
        for version in log.acks:
            if holds(old.history, version) and not holds(new.history, version) and not forgotten(new.history, version):
                text = f"{self.trace.version(version)}, which {server.name} held"
                self.fail("I1", f"a close that nobody willed destroys the acknowledged {text}")

    def _check_revival(self, server: WatchedSessionServer, log: SessionLog, old: Entry, new: Entry) -> None:
        """A provisional tombstone yields only to a write that it lacks."""
        had = newest_write(new.history)
        if had is not None and not holds(old.history, had) and not forgotten(old.history, had):
            self.counts["lapses undone by a write that they lacked"] += 1
        elif any(not holds(old.history, history[-1]) for history in log.given_up.get(new.version.owner, ())):
            self.excuse("promise 2: lapse undone by who found the other branch of a fork, which it lacked")
        else:
            self.fail("I2", f"{server.name} has a lapsed session revived by {self.trace.version(new.version)}")
            return
        # The lapse was reported; what only it covered does not come back with the other branch.
        self._note_forked_away(log, old)

    def _note_forked_away(self, log: SessionLog, old: Entry) -> None:
        """What only the other branch had, or a lapse covered, is on no session server any more."""
        kept = self._kept(log)
        for one in log.blobs:
            if holds(old.history, one) and one not in kept:
                log.forked_away.setdefault(one, self.schedule.now)

    def _note_writes(self, server: WatchedSessionServer, log: SessionLog, entry: Entry | None) -> None:
        """Since when a session server has had each write that it has."""
        for one in log.blobs:
            if entry is not None and not entry.closed and holds(entry.history, one):
                log.has_since.setdefault((server.name, one), self.schedule.now)
            else:
                log.has_since.pop((server.name, one), None)

    def _kept(self, log: SessionLog, lapses: bool = False) -> set[Version]:
        """The writes that some session server has in a live entry, or covers by a provisional tombstone (``lapses``),
        be it up or not; but for those that the operator gives up."""
        staying = [server for server in self.servers.values() if server.name not in self.leaving]
        entries = [server.look(log.key) for server in staying]
        histories = [entry.history for entry in entries if is_live(entry) or (lapses and entry and entry.provisional)]
        return {one for one in log.blobs if any(holds(history, one) for history in histories)}

    def _check_life(self, log: SessionLog, new: Entry) -> None:
        """No copy ends before its record says, but for what the times of its owners were wrong (clock skew apart)."""
        expires_ms = log.expires_ms.get(new.version)
        if expires_ms is None:
            return
        true_end_ms = EPOCH_MS + self.schedule.now * 1000 + new.expires_in_ms
        if true_end_ms < expires_ms - log.offers[new.version].short_ms - self.skew_range_ms - 1:
            self.fail("I1", f"{self.trace.version(new.version)} is stored for too short a life")

    def _told(self, log: SessionLog, version: Version) -> bool:
        return version in log.acks

    def forgot(self, server: WatchedSessionServer, keys: Iterable[bytes] | None = None, silently: bool = False) -> None:
        """A server restarted empty or stale, or dropped these keys: what it alone had is excused, what others have
        is not."""
        keys = None if keys is None else list(keys)
        self.index_forgotten = self.index_forgotten or keys is None or any(map(self.is_index, keys))
        for log in self.logs.values() if keys is None else [self.log(key) for key in keys if not self.is_index(key)]:
            entry = server.look(log.key)
            before = log.on.pop(server.name, None)
            self._note_writes(server, log, entry)
            if entry is not None:
                log.on[server.name] = entry
            if before is not None and before.final and not is_closed(entry):
                self._tombstone_forgotten(server, log)
            elif before is not None:
                # A lapse stood for the writes that it covered, as long as one is there.
                kept = self._kept(log, lapses=before.closed)
                log.lose(one for one in log.blobs if holds(before.history, one) and one not in kept)
            if entry is None and silently:
                log.vanished_on.add(server.name)
            if before is not None and entry is not before:
                self._note_forgotten(server, log, before, entry)
            for close in log.closes:
                if server.name in close.holders and (entry is None or not entry.final):
                    close.lost.add(server.name)

    def _note_forgotten(self, server: WatchedSessionServer, log: SessionLog, before: Entry, now: Entry | None) -> None:
        """Which writes a session server has no more; a tombstone stood for all that it had accepted before."""
        accepted = [one for one in log.blobs if server.name in log.accepted_by.get(one, ())]
        had = accepted if before.closed else [one for one in log.blobs if holds(before.history, one)]
        kept = now.history if now is not None else ()
        log.forgotten.update((one, self.schedule.now) for one in had if not holds(kept, one))
        epoch = 0 if now is None else now.version.epoch
        claims = {one.claim for one, by in log.accepted_by.items() if server.name in by and one.epoch > epoch}
        log.claims_forgotten.setdefault(server.name, set()).update(claims)

    def _tombstone_forgotten(self, server: WatchedSessionServer, log: SessionLog) -> None:
        """With a willed tombstone goes the last trace of the writes that it took the place of there."""
        since = log.tombstone_since.pop(server.name)
        log.tombstone_forgotten.append((server.name, since, self.schedule.now))
        kept = self._kept(log)
        log.lose(one for one in log.blobs if server.name in log.accepted_by.get(one, ()) and one not in kept)

    def list_changed(self, placement: Placement) -> None:
        """Web servers learn a new list of session servers, one after another."""
        most = max(self.scenario.session_servers, len(placement.servers))
        self.scenario = msgspec.structs.replace(self.scenario, session_servers=most)

    def given_up(self, server: WatchedSessionServer) -> None:
        """The operator takes this one off the list: what it alone has is given up with it."""
        self.leaving.add(server.name)
        others = [one for one in self.servers.values() if one is not server]
        for log in self.logs.values():
            had = server.look(log.key)
            if had is None:
                continue
            if not had.closed:
                kept_writes = self._kept(log)
                log.lose(one for one in log.blobs if holds(had.history, one) and one not in kept_writes)
            kept = [entry for one in others if (entry := one.look(log.key)) is not None]
            written = newest_write(had.history)
            if not any(entry.closed or written is None or holds(entry.history, written) for entry in kept):
                self._note_forgotten(server, log, had, None)


def _inherited(data: dict[str, Any], version: Version, key: bytes) -> list[Operation]:
    """What a login carried over into its new session, as if written there first."""
    operations = []
    for name, value in data.items():
        kind: Any = {"w": "write", "r": "register", "c": "count", "n": "register"}[name[0]]
        number = value["of"] if name == "n" else value
        for _ in range(value if name == "c" else 1):
            operation = Operation(kind, name, number, None)
            operation.versions.append(version)
            operation.session_key = key
            operations.append(operation)
    return operations


def is_closed(entry: Entry | None) -> bool:
    return entry is not None and entry.final


def has_write(entry: Entry | None, version: Version) -> bool:
    return is_live(entry) and holds(entry.history, version)


def is_live(entry: Entry | None) -> TypeGuard[Entry]:
    return entry is not None and not entry.closed
