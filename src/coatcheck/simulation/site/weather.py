"""Faults of the shipped farm, drawn before the history begins, so that parts of it can be left out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Final

import msgspec

from coatcheck.simulation.site.director_host import DirectorHost
from coatcheck.simulation.site.faults import SiteFaults
from coatcheck.simulation.site.site import ShippedFarm
from coatcheck.simulation.weather import Weather
from coatcheck.simulation.world.wire import Link

SLOW_BYTES_PER_S: Final = 2_000.0


class Deviation(msgspec.Struct, frozen=True):
    """One fault of a history. ``name`` is what it is left out, or kept, by."""

    name: str
    at: float
    kind: str


def forecast(seed: int, faults: int, span_s: float, kinds: tuple[str, ...], also: list[str]) -> list[Deviation]:
    """The faults of a seed, by time."""
    dice = Random(f"weather {seed}")
    drawn = [(dice.random() * span_s, dice.choice(kinds)) for _ in range(faults)]
    drawn += [(dice.random() * span_s, kind) for kind in also]
    drawn.sort()
    return [Deviation(f"fault-{number + 1}", at, kind) for number, (at, kind) in enumerate(drawn)]


class SiteWeather(Weather):
    """Does damage to a site, and mends it again. Each fault has dice of its own."""

    _farm: ShippedFarm
    _faults: SiteFaults

    def __init__(self, site: ShippedFarm, wants: Callable[[str], bool]) -> None:
        super().__init__(site, SiteFaults(site))
        self._wants = wants

    def plan(self) -> None:
        """What the history wants of it."""
        scenario = self._farm.scenario
        self._farm.keys.plan(self.span_s())
        also = ["steal"] if scenario.thief else []
        if scenario.faultless and Random(f"close {scenario.seed}").random() < 0.3:
            also.append("close")
        for one in forecast(scenario.seed, scenario.faults, self.span_s(), self.kinds(), also):
            if self._wants(one.name):
                dice = Random(f"{one.name} {scenario.seed}")
                self._farm.schedule.after(one.at, self._strike, one.kind, dice, f"{one.name} {one.kind}")

    def _web_down(self, dice: Random, web: int) -> AbstractContextManager[None]:
        return self._faults.web_down(web, power=dice.random() < 0.2)

    def _web_dies(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.web_down(web, told=dice.random() < 0.5), length)

    def _kill_director(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.director_down(), length)

    def _freeze_director(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._director()), length)

    def _cut_door(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut(self._door(web)), length)

    def _cut_door_one_way(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut([self._door(web)[dice.randrange(2)]]), length)

    def _slow_door(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.slow(self._door(web), SLOW_BYTES_PER_S), length)

    def _slow_client(self, dice: Random, web: int, store: str, length: float) -> None:
        browser = dice.choice(self._farm.browsers)
        links = self._faults.between(browser.name, self._director().name)
        self._hold(self._faults.slow(links, SLOW_BYTES_PER_S), length)

    def _door(self, web: int) -> list[Link]:
        return self._faults.between(self._farm.webs[web].name, self._director().name)

    def _director(self) -> DirectorHost:
        assert self._farm.front is not None
        return self._farm.front.director

    def _power_store(self, dice: Random, web: int, store: str, length: float) -> None:
        comes_back = dice.choice(("whole", "empty", "stale"))
        self._hold(self._faults.store_down(store, comes_back, dice.randint(1, 8), power=True), length)

    def _slow_link(self, dice: Random, web: int, store: str, length: float) -> None:
        links = self._faults.between(self._farm.webs[web].name, store)
        self._hold(self._faults.slow(links, SLOW_BYTES_PER_S), length)

    def _full_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.full(store), length)
