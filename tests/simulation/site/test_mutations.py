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
KINDS: dict[str, Profile] = {
    "a claim goes to all servers at once, and is tried again at once": "duel",
    "a close that nobody willed is as good as any": "all",
    "a copy that was lost is never counted as lost": "all",
    "a fork is not reported": "all",
    "a lease counts from the acknowledgement": "all",
    "a lease never ends": "all",
    "a notice is answered, but the cached copy is served on": "all",
    "a put below target earns a lease": "all",
    "a put is accepted whatever its writer saw": "all",
    "a retired token is taken for ever": "thieves",
    "a second successor is minted before the first was shown": "all",
    "a stall ends no lease": "wide",
    "a stand-in is withdrawn before its server has the session again": "wide",
    "a tombstone goes to the placed servers only": "all",
    "a tombstone is not spread": "all",
    "a tombstone lives half as long": "all",
    "a tried epoch is forgotten": "all",
    "a write is acknowledged though no server has it": "all",
    "a write forgets what others wrote meanwhile": "all",
    "an unacknowledged write stays in the cache": "all",
    "fresh means the bigger number": "all",
    "nothing is repaired": "all",
    "times are judged by the clock of the host that a request reaches": "clocks",
    "what a lost server held keeps its lease": "all",
}
"""Which kind of histories shows the trace that a rule forbids."""


@pytest.mark.parametrize("name", KINDS)
def test_a_rule_that_is_switched_off_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    first_miss(name, run, (draw(seed, KINDS[name]) for seed in range(1, MOST + 1)))
