"""One history: a seed's farm from its first request until faults have stopped and all has healed."""

from __future__ import annotations

from collections import Counter

import msgspec

from coatcheck.simulation.application import Kind
from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.faults import Faults
from coatcheck.simulation.convergence import check_convergence
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.trace import Trace

MAX_TRAFFIC_S = 120.0
SETTLE_S = 8.0
REQUESTS_AFTER: tuple[Kind, ...] = ("read", "write", "read")
CALM_S = 12.0


class Outcome(msgspec.Struct):
    """What became of a history. ``counts``: excuses used, events reported, answers given."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    steps: int
    digest: str
    lines: list[str]


def run(scenario: Scenario, traced: bool = False) -> Outcome:
    """Run one history and judge it; stops at the first violation."""
    farm = BareFarm(scenario, Trace(traced))
    if traced:
        farm.ledger.say(scenario.describe())
    faults = Faults(farm)
    faults.plan()
    for browser in farm.browsers:
        browser.after(0.001, browser.tick)
    if not _traffic(farm):
        faults.stop()
        if not _until(farm, farm.schedule.now + SETTLE_S) and not _after(farm):
            check_convergence(farm)
    ledger = farm.ledger
    return Outcome(
        scenario.seed, ledger.violations, ledger.counts, farm.schedule.steps, farm.trace.digest(), farm.trace.lines
    )


def _traffic(farm: BareFarm) -> bool:
    while farm.schedule.now < MAX_TRAFFIC_S and not all(browser.done for browser in farm.browsers):
        if _until(farm, farm.schedule.now + 1.0):
            return True
    return False


def _after(farm: BareFarm) -> bool:
    """A look through all that is stored and some requests, when all is well again; then a rest."""
    for web in farm.webs:
        web.look_through()
    for kind in REQUESTS_AFTER:
        for browser in farm.browsers:
            browser.send(kind)
        if _until(farm, farm.schedule.now + 1.5):
            return True
    return _until(farm, farm.schedule.now + CALM_S)


def _until(farm: BareFarm, end: float) -> bool:
    """Let time pass; true if an invariant broke."""
    schedule, violations = farm.schedule, farm.ledger.violations
    while schedule.step(end):
        if violations:
            return True
    return bool(violations)
