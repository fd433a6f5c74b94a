"""A history that breaks an invariant, shrunk to the fewest faults and requests with which it still does.

Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002): leave out half of
the parts, then quarters, and so on, as long as what is left still fails in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.simulation.history import Outcome
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.site.history import run

MAX_RUNS: Final = 400
"""Histories that are tried; then the fewest so far must do."""

Run = Callable[[Scenario, bool, frozenset[str]], Outcome]


class Least(msgspec.Struct):
    """The parts that are left, what they break, and how many histories it took to find them."""

    parts: list[str]
    violation: str
    runs: int


def shrink(scenario: Scenario, failed: Outcome, run: Run = run) -> Least:
    """The fewest parts of a failed history (no one of them can be left out) that break the same invariant."""
    kind = _kind(failed)
    least = Least(list(failed.parts), failed.violations[0], 0)
    pieces = 2
    while least.parts and least.runs < MAX_RUNS:
        size = -(-len(least.parts) // pieces)
        for start in range(0, len(least.parts), size):
            kept = least.parts[:start] + least.parts[start + size :]
            least.runs += 1
            again = run(scenario, False, frozenset(kept))
            if again.violations and _kind(again) == kind:
                least.parts, least.violation = kept, again.violations[0]
                pieces = max(pieces - 1, 2)
                break
            if least.runs >= MAX_RUNS:
                return least
        else:
            if size == 1:
                return least
            pieces = min(2 * pieces, len(least.parts))
    return least


def _kind(failed: Outcome) -> str:
    return failed.violations[0].partition(":")[0]
