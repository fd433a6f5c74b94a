"""The simulation must be able to fail: with a main rule switched off, some seed says so."""

from __future__ import annotations

import pytest

from coatcheck.simulation.history import run
from coatcheck.simulation.scenario import draw

from .mutations import MUTATIONS

FIRST: dict[str, tuple[str, int, int]] = {
    "a claim goes to all servers at once, and is tried again at once": ("duel", 1, 200),
    "a claim skips the servers that showed a copy but are not placed": ("leases", 1, 600),
    "a put begun before a notice earns a lease": ("sleepers", 1, 600),
    "an owner thinks itself alone as soon as it has claimed": ("leases", 700, 400),
    "a retired token is dead one grace after it was replaced": ("sleepers", 1, 600),
    "a second close is complete at once": ("leases", 800, 400),
    "a retired token is taken for ever": ("thieves", 500, 600),
    "a stall ends no lease": ("wide", 1, 400),
    "a stand-in is withdrawn before its server has the session again": ("wide", 1, 400),
    "times are judged by the clock of the host that a request reaches": ("clocks", 1, 200),
}
"""Which kind of histories shows the trace that a rule forbids, from which seed, and how many are tried at most."""


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_rule_that_is_switched_off_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, first, seeds = FIRST.get(name, ("all", 1, 400))
    MUTATIONS[name](monkeypatch)
    for seed in range(first, first + seeds):
        outcome = run(draw(seed, profile))  # type: ignore[arg-type]
        if outcome.violations:
            print(f"{name}: seed {seed} ({profile}): {outcome.violations[0]}")
            return
    pytest.fail(f"nobody missed it in {seeds} histories")
