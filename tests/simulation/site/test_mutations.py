"""The simulation of the shipped shells must be able to fail: with a rule switched off, some seed says so.

Here are the rules of which a handful of histories shows the loss; the others are for campaigns (docs/simulation.md).
"""

from __future__ import annotations

import pytest

from coatcheck.simulation.scenario import Profile, draw
from coatcheck.simulation.site.history import run

from ..missed import first_miss
from ..mutations import MUTATIONS

MOST = 100
"""Histories that are tried for a rule; a dozen was enough for each."""
FOUND: dict[str, tuple[Profile, int]] = {
    "a claim goes to all servers at once, and is tried again at once": ("duel", 41),
    "a close that nobody willed is as good as any": ("all", 11),
    "a copy that was lost is never counted as lost": ("all", 2),
    "a fork is not reported": ("all", 75),
    "a lease counts from the acknowledgement": ("all", 1),
    "a lease never ends": ("all", 1),
    "a notice is answered, but the cached copy is served on": ("all", 39),
    "a put below target earns a lease": ("all", 1),
    "a put is accepted whatever its writer saw": ("all", 11),
    "a retired token is taken for ever": ("thieves", 1),
    "a second successor is minted before the first was shown": ("all", 2),
    "a stall ends no lease": ("wide", 11),
    "a stand-in is withdrawn before its server has the session again": ("wide", 4),
    "a tombstone goes to the placed servers only": ("all", 5),
    "a tombstone is not spread": ("all", 11),
    "a tombstone lives half as long": ("all", 3),
    "a tried epoch is forgotten": ("all", 8),
    "a write is acknowledged though no server has it": ("all", 7),
    "a write forgets what others wrote meanwhile": ("all", 1),
    "an unacknowledged write stays in the cache": ("all", 17),
    "fresh means the bigger number": ("all", 75),
    "nothing is repaired": ("all", 5),
    "times are judged by the clock of the host that a request reaches": ("clocks", 1),
    "what a lost server held keeps its lease": ("all", 2),
}
"""Which kind of histories shows the trace that a rule forbids, and from which seed they are tried: one that did."""


@pytest.mark.parametrize("name", FOUND)
def test_a_rule_that_is_switched_off_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    profile, first = FOUND[name]
    first_miss(name, run, (draw(seed, profile) for seed in range(first, first + MOST)))
