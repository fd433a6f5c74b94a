"""The simulation must be able to fail: with a main rule switched off, some seed says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coatcheck.simulation.bare.history import run
from coatcheck.simulation.scenario import Profile, draw

from .missed import first_miss
from .mutations import MUTATIONS

FIRST: dict[str, tuple[Profile, int, int]] = {
    "a login is told before the index of its user has it": ("users", 1, 200),
    "what a limit ends is closed after the login was told": ("users", 1, 200),
    "an index is written over what a rival wrote since": ("users", 245, 100),
    "a close of a user ends what is listed, and leaves no mark for logins under way": ("users", 8, 200),
    "an index lives for ever": ("users", 1, 50),
    "a claim goes to all servers at once, and is tried again at once": ("duel", 35, 200),
    "a claim skips the servers that showed a copy but are not placed": ("leases", 411, 600),
    "a put begun before a notice earns a lease": ("duel", 11, 200),
    "an owner thinks itself alone as soon as it has claimed": ("leases", 19, 800),
    "a retired token is dead one grace after it was replaced": ("sleepers", 387, 600),
    "a retired token is taken for ever": ("thieves", 6, 600),
    "a lapse yields to a copy in a cache, though it covers that": ("wide", 74, 200),
    "a second close is complete at once": ("leases", 28, 800),
    "a lease goes on while one link is heard": ("links", 5042, 200),
    "a stall ends no lease": ("wide", 12, 400),
    "a stand-in is withdrawn before its server has the session again": ("wide", 6, 400),
    "of a session that forked once nobody looks at what its token promises": ("wide", 89, 200),
    "repair compares what copies hold, not whose they are": ("wide", 9, 200),
    "times are judged by the clock of the host that a request reaches": ("clocks", 7, 200),
    "who once found a fork puts over whatever is there": ("wide", 9, 200),
    "a cached copy is served whatever the token promises": ("all", 8, 400),
    "a close does not wait for leases": ("all", 70, 400),
    "a close that nobody willed is as good as any": ("all", 4, 400),
    "a copy that was lost is never counted as lost": ("all", 7, 400),
    "a fork is not reported": ("all", 4, 400),
    "a forked session is repaired by copying, without a claim": ("all", 50, 400),
    "a notice is answered, but the cached copy is served on": ("all", 26, 400),
    "a notice of the same or an older epoch is ignored": ("all", 26, 400),
    "a put earns a lease though contact was lost meanwhile": ("all", 19, 400),
    "a put is accepted whatever its writer saw": ("all", 4, 400),
    "a refused write that was adopted is done twice": ("all", 334, 400),
    "a tombstone counts like any other copy": ("all", 12, 400),
    "a tombstone goes to the placed servers only": ("all", 5, 400),
    "a tried epoch is forgotten": ("all", 4, 400),
    "an unacknowledged write stays in the cache": ("all", 10, 400),
    "equal values of two requests are no conflict": ("all", 374, 400),
    "fresh means the bigger number": ("all", 4, 400),
    "hosted sessions are not copied again": ("all", 19, 400),
    "notices are ignored": ("all", 11, 400),
    "one copy is a quorum": ("all", 29, 400),
    "spread by others leaves a close incomplete for ever": ("all", 24, 400),
    "what a lost server held keeps its lease": ("all", 6, 400),
    "what some session servers do not show is lost": ("all", 58, 400),
}
"""Which kind of histories shows the trace that a rule forbids, from which seed (one that showed it), and how many are
tried at most."""


QUIET_CLOSES: dict[str, Any] = {
    "web_servers": 3, "faults": 10, "stickiness": 0.5, "lost_notices": 0.7, "loss": 0.0, "lateness": 0.0,
    "duplication": 0.0, "cancelled": 0.0, "logins": False, "retries": False,
}  # fmt: skip
"""Three web servers, many closes, and messages that arrive, but for notices. One or two of a hundred such histories
have a close that meets the lease of another web server; one of seven hundred of the profile ``leases`` has."""
FORKS: dict[str, Any] = {
    "web_servers": 3, "session_servers": 3, "copies": 2, "below_target": "degrade", "too_few_answers": "serve",
    "durability": "all", "patience_s": 0.3, "lease_s": 0.5, "faults": 12, "browsers": 1, "tabs": 3, "requests": 30,
    "gap_s": 0.2, "stickiness": 0.3, "logins": False, "theft": "refuse", "real_seal": False,
}  # fmt: skip
"""A farm that serves and acknowledges whatever happens: every other history of it has a fork, of the profile ``wide``
one of forty."""
CHANGED = dict.fromkeys(
    ("a second close is complete at once", "an owner thinks itself alone as soon as it has claimed"), QUIET_CLOSES
) | dict.fromkeys(
    (
        "a lapse yields to a copy in a cache, though it covers that",
        "of a session that forked once nobody looks at what its token promises",
        "repair compares what copies hold, not whose they are",
        "who once found a fork puts over whatever is there",
    ),
    FORKS,
)
"""What else is given for a mutation whose trace is seldom drawn."""


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_rule_that_is_switched_off_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, first, seeds = FIRST.get(name, ("all", 1, 400))
    MUTATIONS[name](monkeypatch)
    drawn = (draw(seed, profile) for seed in range(first, first + seeds))
    first_miss(name, run, (msgspec.structs.replace(scenario, **CHANGED.get(name, {})) for scenario in drawn))
