"""The exhaustive, bounded search of a small farm."""

from __future__ import annotations

import pytest

from coatcheck.simulation.bare.search import SCRIPTS, explore, small_scenario

from .mutations import MUTATIONS


@pytest.mark.parametrize("script", ["write-read", "close-read", "write-delete"])
def test_every_order_of_two_requests_without_faults(script: str) -> None:
    found = explore(script, max_states=20_000, max_faults=0, disorder=1)
    assert found.lines == []
    assert found.violations == []
    assert found.whole
    assert found.states > 500


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_one_fault_at_any_point(script: str) -> None:
    found = explore(script, max_states=1_000, max_faults=1, disorder=1)
    assert found.violations == [], "\n".join(found.lines)
    assert found.states >= 1_000 or found.whole


def test_the_search_misses_a_rule_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["an unacknowledged write stays in the cache"](monkeypatch)
    found = explore("write-write", max_states=30_000, max_faults=1, disorder=0)
    assert found.violations
    assert any("FAULT" in line for line in found.lines), "the path is told, with its fault"


@pytest.mark.slow
@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("script", ["write-read", "write-logout-read", "timeout-write-read", "timeout-read-write"])
def test_a_cut_at_any_point(script: str, servers: int) -> None:
    scenario = small_scenario(session_servers=servers, patience_s=0.0)
    found = explore(script, max_states=1_000, max_faults=1, disorder=0, scenario=scenario, cuts=True)
    assert found.violations == [], "\n".join(found.lines)
    assert found.states >= 1_000 or found.whole


@pytest.mark.parametrize("script", ["write-read", "timeout-write-read"])
def test_the_search_meets_a_cut(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS["what some session servers do not show is lost"](monkeypatch)
    scenario = small_scenario(patience_s=0.0)
    found = explore(script, max_states=20_000, max_faults=1, disorder=0, scenario=scenario, cuts=True)
    assert found.violations
    assert any("FAULT cut" in line for line in found.lines), "the path is told, with its cut"
