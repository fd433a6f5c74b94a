"""A rule is switched off: the history that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from coatcheck.simulation.history import Outcome
from coatcheck.simulation.scenario import Scenario


def first_miss(name: str, run: Callable[[Scenario], Outcome], scenarios: Iterable[Scenario]) -> str:
    """The first invariant that one of these histories finds broken."""
    tried = 0
    for scenario in scenarios:
        tried += 1
        violations = run(scenario).violations
        crashes = [one for one in violations if one.startswith("errors")]
        assert not crashes, "a mutation that does not run proves nothing"
        if violations:
            print(f"{name}: seed {scenario.seed}: {violations[0]}")
            return violations[0]
    pytest.fail(f"nobody missed it in {tried} histories")
