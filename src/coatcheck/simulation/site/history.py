"""Histories of the shipped farm, any part of which can be left out."""

from __future__ import annotations

from typing import Final

import msgspec

from coatcheck.simulation.history import Outcome, live
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.site.site import ShippedFarm
from coatcheck.simulation.site.weather import SiteWeather
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.world.world import SimulatedWorld

CHANCES: Final = ("loss", "duplication", "lateness", "lost_notices", "lost_responses", "cancelled")
"""What may befall any message; each can be left out of a history by its name."""


def run(scenario: Scenario, traced: bool = False, only: frozenset[str] | None = None) -> Outcome:
    """Run one history and judge it; stops at the first violation. ``only``: the parts that it is to have."""
    asked: dict[str, None] = {}

    def wants(name: str) -> bool:
        asked[name] = None
        return only is None or name in only

    # Its requests close no users yet, so no index is kept, and nobody is limited.
    scenario = msgspec.structs.replace(scenario, users=False, user_limit=0)
    without = {name: 0.0 for name in CHANCES if getattr(scenario, name) and not wants(name)}
    world = SimulatedWorld(scenario.seed, _no_ledger_yet)
    with world.running():
        site = ShippedFarm(msgspec.structs.replace(scenario, **without), Trace(traced), world, wants)
        site.ledger.disturbed = not scenario.faultless
        return live(site, SiteWeather(site, wants), asked)


def _no_ledger_yet(text: str, error: BaseException | None) -> None:
    raise RuntimeError(text) from error
