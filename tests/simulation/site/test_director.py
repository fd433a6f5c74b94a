"""The shipped director before the web servers of a site: what docs/director.md promises holds, and is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from coatcheck.director.io.server_link import ServerLink
from coatcheck.director.rules import delivery, routing
from coatcheck.director.rules.delivery import Delivery
from coatcheck.director.rules.routing import Balancer
from coatcheck.farm.processes import told_by_director
from coatcheck.simulation.scenario import Scenario, draw
from coatcheck.simulation.site.history import run

from ..missed import first_miss

MOST = 20
"""Histories that are tried for a mistake."""


def histories(damage: str, first: int, count: int) -> Iterator[Scenario]:
    """So many histories of one kind."""
    seed = first
    while count:
        scenario = draw(seed, "director")
        if scenario.damage == damage:
            count -= 1
            yield scenario
        seed += 1


@pytest.mark.parametrize("damage", ["narrow", "deaths", "door"])
def test_histories_with_a_director_hold(damage: str) -> None:
    counts: Counter[str] = Counter()
    for scenario in histories(damage, 1, 2):
        told = run(scenario)
        assert told.violations == [], scenario.seed
        counts += told.counts
    assert counts["answers"] > 10


def _resent_post(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(delivery, "IDEMPOTENT_METHODS", delivery.IDEMPOTENT_METHODS | {b"POST"})


def _impatient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Delivery, "is_impatient", lambda self, waited_s, health, policy: waited_s >= 0.5 and self.may_be_resent(policy)
    )


def _by_turns(patch: pytest.MonkeyPatch) -> None:
    shipped = Balancer.choose
    patch.setattr(Balancer, "choose", lambda self, tag, tried, **named: shipped(self, None, tried, **named))


def _no_stand_in(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(routing, "by_hash", lambda key, servers: None)


def _ends_unnoticed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ServerLink, "_ended", lambda self, ending: None)


def _failing_apps_close(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(told_by_director, "_is_answered", lambda send: False)


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, int, str]] = {
    "a POST is sent again when its web server dies": (_resent_post, "deaths", 29, "carried out 2 times"),
    "silence is death": (_impatient, "door", 6, "which has it, lives"),
    "routes are not looked at": (_by_turns, "narrow", 2, "which its route names, is well"),
    "a browser is spread when its web server dies": (_no_stand_in, "deaths", 80, "others with the same cookies"),
    "an app that fails behind its answer closes the connection": (_failing_apps_close, "narrow", 2, "#"),
    "the end of a connection is not noticed": (_ends_unnoticed, "deaths", 18, "has no answer after"),
}
"""What is broken, in which kind of histories it shows, from which seed they are tried (one that did), which words."""
BUSY: dict[str, dict[str, Any]] = {
    "narrow": {"web_servers": 3},
    "deaths": {"faults": 12, "gap_s": 0.05, "tabs": 4, "requests": 60},
    "door": {"faults": 12, "gap_s": 0.05, "tabs": 4, "requests": 60, "loss": 0.0, "lateness": 0.0},
}
"""What makes each kind harsher, so that it shows soon."""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_director_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, damage, first, words = BROKEN[name]
    break_it(monkeypatch)
    busy = (msgspec.structs.replace(scenario, **BUSY[damage]) for scenario in histories(damage, first, MOST))
    violation = first_miss(name, run, busy)
    assert violation.startswith("director: "), "a mistake in the test itself proves nothing"
    assert words in violation
