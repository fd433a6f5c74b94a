"""Histories of the bare flows: dozens a second."""

from __future__ import annotations

from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.faults import BareWeather
from coatcheck.simulation.history import Outcome, live
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.trace import Trace


def run(scenario: Scenario, traced: bool = False) -> Outcome:
    """Run one history and judge it; stops at the first violation."""
    farm = BareFarm(scenario, Trace(traced))
    return live(farm, BareWeather(farm))
