"""One history of the shipped farm: from its first request until faults have stopped and all has healed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.simulation.convergence import check_convergence, has_converged
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
"""At most; longer than the interval of ``BackgroundRepair``, and the scans that follow an alarm."""
GLANCE_S: Final = 0.1
"""How often it is seen whether that was time enough."""
LOOK_S: Final = 1.0
"""All that is stored is looked at so often; who has found it in order twice need not wait for longer."""


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
    if _settles(site) or _after(site):
        return
    if site.front is not None:
        site.front.judge_end()
    check_convergence(site)


def _traffic(site: Site) -> bool:
    """All browsers send what they are to send, and have their answers."""
    return _until(site, MAX_TRAFFIC_S, lambda: all(browser.done for browser in site.browsers))


def _settles(site: Site) -> bool:
    """Everybody is there again, and has found everybody."""
    return _until(site, SETTLE_S, lambda: all(web.is_connected for web in site.webs))


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
    return _rests(site)


def _rests(site: Site) -> bool:
    """Until all copies are as they have to be, and stay so; what never becomes so is judged as it is then."""
    end, found = site.schedule.now + CALM_S, 0
    while site.schedule.now < end and found < 2:
        if _until(site, LOOK_S):
            return True
        found = found + 1 if has_converged(site) else 0
    return False


def _until(site: Site, seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
    """Let time pass, no more than is ``enough``; true if an invariant broke."""
    violations, end = site.ledger.violations, site.schedule.now + seconds
    while site.schedule.now < end and not violations and not enough():
        site.world.run(min(GLANCE_S, end - site.schedule.now), lambda: violations)
    return bool(violations)
