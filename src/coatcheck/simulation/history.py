"""One history: a seed's farm from its first request until faults have stopped and all has healed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from coatcheck.simulation.application import Kind
from coatcheck.simulation.convergence import check_convergence
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.weather import Weather

MAX_TRAFFIC_S: Final = 120.0
REQUESTS_AFTER: Final[tuple[Kind, ...]] = ("read", "write", "read")
LOOK_S: Final = 1.0
"""How often it is seen, at the end, whether all copies are as they have to be; who finds it twice need not wait on."""


class Outcome(msgspec.Struct):
    """What became of a history. ``counts``: excuses used, events reported, answers given. ``parts``: the names of all
    that it deviates by (faults, chances, requests), if it can be run again without some."""

    seed: int
    violations: list[str]
    counts: Counter[str]
    steps: int
    digest: str
    lines: list[str]
    parts: list[str] = []


def live(farm: Farm[Any, Any], weather: Weather, parts: dict[str, None] | None = None) -> Outcome:
    """Let a farm live its history, and judge it; stops at the first violation."""
    if farm.trace.on:
        farm.ledger.say(farm.scenario.describe())
    try:
        _live(farm, weather)
    finally:
        farm.is_over = True
    ledger, trace = farm.ledger, farm.trace
    return Outcome(
        farm.scenario.seed, ledger.violations, ledger.counts, farm.schedule.steps, trace.digest(), trace.lines,
        list(parts or ()),
    )  # fmt: skip


def _live(farm: Farm[Any, Any], weather: Weather) -> None:
    weather.plan()
    for browser in farm.browsers:
        browser.after(0.001, browser.tick)
    if _until(farm, MAX_TRAFFIC_S, lambda: all(browser.done for browser in farm.browsers)):
        return
    weather.stop()
    if not (_until(farm, farm.SETTLE_S, farm.has_settled) or _after(farm)):
        farm.judge_end()
        check_convergence(farm)


def _after(farm: Farm[Any, Any]) -> bool:
    """A look through all that is stored and some requests, when all is well again; then a rest."""
    if _until(farm, farm.look_through()):
        return True
    for kind in REQUESTS_AFTER:
        for browser in farm.browsers:
            browser.send(kind)
        if _until(farm, 1.5):
            return True
    return _rests(farm)


def _rests(farm: Farm[Any, Any]) -> bool:
    """Until all copies are as they have to be, and stay so; what never becomes so is judged as it is then."""
    end, found = farm.schedule.now + farm.CALM_S, 0
    while farm.schedule.now < end and found < 2:
        if _until(farm, LOOK_S):
            return True
        found = found + 1 if farm.needs_no_rest() else 0
    return False


def _until(farm: Farm[Any, Any], seconds: float, enough: Callable[[], bool] = lambda: False) -> bool:
    """Let time pass, no more than is ``enough``; true if an invariant broke."""
    violations, end = farm.ledger.violations, farm.schedule.now + seconds
    while farm.schedule.now < end and not violations and not enough():
        farm.schedule.run(min(farm.GLANCE_S, end - farm.schedule.now), lambda: violations)
    return bool(violations)
