"""One history of the shipped farm: from its first request until faults have stopped and all has healed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.simulation.convergence import check_convergence
from coatcheck.simulation.history import MAX_TRAFFIC_S, REQUESTS_AFTER, Outcome
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.site.site import Site
from coatcheck.simulation.site.weather import Weather
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.world.world import SimulatedWorld

CHANCES: Final = ("loss", "duplication", "lateness", "lost_notices", "lost_responses", "cancelled")
"""What may befall any message; each can be left out of a history by its name."""


SETTLE_S: Final = 4.0
CALM_S: Final = 8.0
"""Longer than the interval of ``BackgroundRepair``, and the scans that follow an alarm."""


class Told(Outcome):
    """``parts``: the names of all that the history deviates by: faults, chances, requests."""

    parts: list[str] = msgspec.field(default_factory=list)


def run(scenario: Scenario, traced: bool = False, only: frozenset[str] | None = None) -> Told:
    """Run one history and judge it; stops at the first violation. ``only``: the parts that it is to have."""
    asked: dict[str, None] = {}

    def wants(name: str) -> bool:
        asked[name] = None
        return only is None or name in only

    without = {name: 0.0 for name in CHANCES if getattr(scenario, name) and not wants(name)}
    trace = Trace(traced)
    world = SimulatedWorld(scenario.seed, _no_ledger_yet)
    with world.running():
        site = Site(msgspec.structs.replace(scenario, **without), trace, world, wants)
        site.ledger.disturbed = not scenario.faultless
        if traced:
            site.ledger.say(scenario.describe())
        _live(site, wants)
    ledger = site.ledger
    return Told(
        scenario.seed, ledger.violations, ledger.counts, world.schedule.steps, trace.digest(), trace.lines, list(asked)
    )


def _no_ledger_yet(text: str, error: BaseException | None) -> None:
    raise RuntimeError(text) from error


def _live(site: Site, wants: Callable[[str], bool]) -> None:
    weather = Weather(site, wants)
    weather.plan()
    for browser in site.browsers:
        browser.after(0.001, browser.tick)
    if _traffic(site):
        return
    weather.stop()
    if _until(site, SETTLE_S) or _after(site):
        return
    check_convergence(site)  # type: ignore[arg-type]


def _traffic(site: Site) -> bool:
    end = site.schedule.now + MAX_TRAFFIC_S
    while site.schedule.now < end and not all(browser.done for browser in site.browsers):
        if _until(site, 1.0):
            return True
    return False


def _after(site: Site) -> bool:
    """A look through all that is stored and some requests, when all is well again; then a rest."""
    if site.ledger.disturbed:
        site.break_connections()
        if _until(site, 1.0):
            return True
    for kind in REQUESTS_AFTER:
        for browser in site.browsers:
            browser.send(kind)
        if _until(site, 1.5):
            return True
    return _until(site, CALM_S)


def _until(site: Site, seconds: float) -> bool:
    """Let time pass; true if an invariant broke."""
    violations = site.ledger.violations
    return site.world.run(seconds, lambda: violations)
