"""Invariant 6: when faults have stopped, every session has its copies again, and the gauges say so."""

from __future__ import annotations

from typing import Any

from coatcheck.events import EventKind
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import newest_write
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.log import SessionLog, forgotten, holds

REPORTS = (EventKind.SESSION_FORKED, EventKind.SESSION_ROLLED_BACK, EventKind.SESSION_NOT_FOUND)


def check_convergence(farm: Farm[Any, Any]) -> None:
    """Judge the farm after :data:`coatcheck.simulation.history.CALM_S` without faults."""
    for web in farm.webs:
        if unfinished := web.unfinished():
            farm.ledger.fail("deadlock", f"{web.name} still has {len(unfinished)} flows under way: {unfinished}")
        if web.copies.closing:
            farm.ledger.fail("I6", f"{web.name} says that {len(web.copies.closing)} closes are incomplete")
    for log in list(farm.ledger.logs.values()):
        entries = {name: server.look(log.key) for name, server in farm.servers.items()}
        present = {name: entry for name, entry in entries.items() if entry is not None}
        if not present:
            continue
        lives = [server.life_left_s(log.key) for server in farm.servers.values()]
        if any(left_s is not None and left_s < 10.0 for left_s in lives):
            continue  # about to expire
        if farm.ledger.is_closed_with_all(log):
            farm.ledger.excuse("section 11: closed with all others, its entries end by their timeouts")
            continue
        live = {name: entry for name, entry in present.items() if not entry.closed}
        unwilled = present if all(entry.provisional for entry in present.values()) else {}
        kept = live or unwilled
        wrong_clocks = farm.scenario.damage == "clocks" and all(farm.servers[name].expires_by_wall for name in kept)
        if kept and farm.ledger.is_over(log) and wrong_clocks:
            # Redis ends its keys by its own clock: what it stored while that was ahead by hours stays for hours.
            farm.ledger.excuse("section 8: kept after its time by a session server whose clock was ahead")
            continue
        if any(entry.final for entry in present.values()):
            _check_tombstones(farm, log, {name: entry for name, entry in present.items() if entry.final})
        elif not live or any(_covers_all(entry, live) for entry in present.values() if entry.closed):
            _check_tombstones(farm, log, present)
        else:
            _check_live(farm, log, live)
    _check_gauges(farm)


class _Differs(Exception):
    """Something is not as it has to be in the end."""


class _Onlooker:
    """A farm, or its ledger, for a look that judges nobody: what would fail, or be excused, is not there yet."""

    def __init__(self, real: Any, **instead: Any) -> None:
        self._real = real
        self.__dict__.update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _differs(*what: Any) -> None:
    raise _Differs


def has_converged(farm: Farm[Any, Any]) -> bool:
    """Whether :func:`check_convergence` would find nothing to say now, not even an excuse."""
    looked: Any = _Onlooker(farm, ledger=_Onlooker(farm.ledger, fail=_differs, excuse=_differs))
    try:
        check_convergence(looked)
    except _Differs:
        return False
    return True


def _covers_all(tombstone: Entry, live: dict[str, Entry]) -> bool:
    """Whether a provisional tombstone has every write that the live copies have; then it counts."""
    written = [newest_write(entry.history) for entry in live.values()]
    return all(one is None or holds(tombstone.history, one) or forgotten(tombstone.history, one) for one in written)


def _check_tombstones(farm: Farm[Any, Any], log: SessionLog, present: dict[str, Entry]) -> None:
    lacking = [name for name in farm.servers if name not in present or not present[name].closed]
    if lacking and any(entry.final for entry in present.values()) and farm.schedule.now >= log.tombstone_until:
        # A close is retried with a whole life until it is effective, so that later tombstones of it live longer than
        # the first one. When that has ended, nothing is left that they forbid, and nobody spreads them for ever.
        farm.ledger.excuse("section 6: the first tombstone has ended, and all that it forbids")
    elif lacking and farm.ledger.is_over(log) and _was_overruled(log, present):
        farm.ledger.excuse("section 6: a provisional tombstone that a cache overruled, of a session whose time is over")
    elif lacking:
        farm.ledger.fail("I6", f"{lacking} lack the tombstone of {farm.trace.key(log.key)}")


def _was_overruled(log: SessionLog, present: dict[str, Entry]) -> bool:
    """Whether only provisional tombstones are left, and somebody has claimed the session since they were put."""
    last = max(entry.version.epoch for entry in present.values())
    provisional = all(entry.provisional for entry in present.values())
    return provisional and any(one.epoch > last for one in log.accepted_by)


def _check_live(farm: Farm[Any, Any], log: SessionLog, present: dict[str, Entry]) -> None:
    ledger = farm.ledger
    placed = farm.placement.ranking(log.key)[: farm.placement.wanted]
    name = farm.trace.key(log.key)
    versions = {server: present[server].version if server in present else None for server in placed}
    if not log.issued:
        ledger.excuse("never acknowledged: nobody has its token")
        return
    if any(
        server in log.vanished_on and (version is None or (server, version) in log.came_late)
        for server, version in versions.items()
    ):
        ledger.excuse("promise 1: vanished while its connections stood, noticed at the next use")
        return
    if _is_late_claim(farm, log, {server: present.get(server) for server in placed}):
        ledger.excuse("section 4: a claim that was given up came late, changed no data, and nobody was there to hear")
        return
    if len(set(versions.values())) != 1 or None in versions.values():
        shown = {server: farm.trace.version(version) for server, version in versions.items()}
        ledger.fail("I6", f"the placed servers of {name} differ: {shown}")
        return
    newest = present[placed[0]]
    for server, entry in present.items():
        had = newest_write(entry.history)
        if had is not None and not holds(newest.history, had) and not forgotten(newest.history, had):
            ledger.fail("I6", f"{server} has {farm.trace.version(had)} of {name}, which the placed servers lack")
    _check_acknowledged(farm, log, newest)


def _is_late_claim(farm: Farm[Any, Any], log: SessionLog, placed: dict[str, Entry | None]) -> bool:
    """Whether copies differ in nothing but a claim that was stored when its sender waited for it no more, and whose
    notice was lost, or whose sender hosts the session no more."""
    entries = [entry for entry in placed.values() if entry is not None]
    if len(entries) < len(placed) or any(entry.history != entries[0].history for entry in entries):
        return False
    latest = max((entry.version for entry in entries), key=lambda version: version.epoch)
    holders = [server for server, entry in placed.items() if entry is not None and entry.version == latest]
    if any((server, latest) not in log.came_late for server in holders):
        return False
    senders = [web for web in farm.webs if web.server_id == latest.server_id]
    hosted = any(web.copies.cache.get(log.key) is not None for web in senders)
    return any(entry.version != latest for entry in entries) and not (latest in log.heard and hosted)


def _check_acknowledged(farm: Farm[Any, Any], log: SessionLog, newest: Entry) -> None:
    """Invariant 1 at the end: each acknowledged write is there, or its loss was reported, or all who had it forgot."""
    ledger = farm.ledger
    if log.tombstones:
        ledger.excuse("closed: the tombstone has expired since")
        return
    for version in log.acks:
        if holds(newest.history, version) or forgotten(newest.history, version):
            continue
        if (version in log.lost or version in log.forked_away) and any(log.reported(kind) for kind in REPORTS):
            ledger.excuse("promise 2: lost and reported")
        elif version in log.lost:
            ledger.excuse("promise 1: lost with a server that forgot")
        else:
            ledger.fail("I1", f"the acknowledged {farm.trace.version(version)} is gone, and nobody was told")


def _check_gauges(farm: Farm[Any, Any]) -> None:
    for web in farm.webs:
        for key in sorted(web.copies.under_replicated):
            if all(server.look(key) is None for server in farm.servers.values()):
                continue
            farm.ledger.fail("I6", f"{web.name} says that {farm.trace.key(key)} is under-replicated; it is not")
            return
