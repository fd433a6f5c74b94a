"""Whether a copy may be withdrawn: never the only one of a write (mission B4)."""

from __future__ import annotations

from collections.abc import Iterable

from coatcheck.replication.effects import Put
from coatcheck.replication.entry import WITHDRAWN_MS
from coatcheck.replication.version import Version, newest_write
from coatcheck.simulation.judge import Judge
from coatcheck.simulation.log import SessionLog, holds
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer


def check_withdrawal(judge: Judge, web: WatchedWebServer, log: SessionLog, effect: Put) -> None:
    """Judge a put that leaves a live copy no life: everything in it must be elsewhere at that moment."""
    entry = effect.entry
    if entry.closed or entry.expires_in_ms > WITHDRAWN_MS or log.payloads.get((entry.version, False)) != entry.payload:
        return
    if any(seen != entry.version for seen in effect.seen.values()):
        return  # a write of a session whose own time is over
    judge.counts["withdrawn copies"] += 1
    if judge.trace.on:
        judge.say(f"{web.name} withdraws {judge.trace.version(entry.version)} from {', '.join(effect.seen)}")
    others = [server for name, server in judge.servers.items() if name not in effect.seen]
    written = newest_write(entry.history)
    if written is not None and not _kept(log, others, written):
        if judge.is_expiring(log):
            judge.excuse("promise 6: withdrawn when the session's own time was over")
        elif log.forgotten.get(written, -1.0) >= web.answered.get(log.key, (0.0, {}))[0]:
            judge.excuse("promise 1: withdrawn in the moment in which the others forgot")
        else:
            judge.fail("I1", f"{web.name} withdraws the only copy of {judge.trace.version(written)}")


def _kept(log: SessionLog, servers: Iterable[WatchedSessionServer], written: Version) -> bool:
    entries = [server.look(log.key) for server in servers]
    return any(entry is not None and (entry.closed or holds(entry.history, written)) for entry in entries)
