"""Keys are rotated in histories of the shipped shells, and no honest browser is logged out by that. With a rule
switched off, some history says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coatcheck.replication.effects import FreshKeys
from coatcheck.sessions.requests import Requests
from coatcheck.simulation.scenario import Scenario, draw
from coatcheck.simulation.site import keys
from coatcheck.simulation.site.history import run
from coatcheck.tokens.keyring import PayloadSealer

MOST = 60


def restless(seed: int) -> Scenario:
    """A history whose browsers ask now this web server, now that one."""
    return msgspec.structs.replace(draw(seed, "all"), stickiness=0.0)


def ask_nobody(monkeypatch: Any) -> None:
    shipped = Requests._open
    monkeypatch.setattr(Requests, "_open", lambda self, opened, may_ask: shipped(self, opened, False))


def take_silence_for_an_answer(monkeypatch: Any) -> None:
    monkeypatch.setattr(keys, "SILENT", 1.0)

    def go_on(self: Any, opened: Any) -> Any:
        yield FreshKeys()
        opening = self._open(opened, may_ask=False)
        if opening is not None:
            yield from opening

    monkeypatch.setattr(Requests, "_open_with_fresh_keys", go_on)


def leave_copies_out(monkeypatch: Any) -> None:
    monkeypatch.setattr(PayloadSealer, "knows", lambda self, payload: True)


@pytest.mark.parametrize("silent", [0.0, 1.0])
def test_rotations_log_nobody_out_even_where_web_servers_learn_late(
    silent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "EAGER", 1.0)
    monkeypatch.setattr(keys, "SILENT", silent)
    activated = 0
    for seed in range(1, 13):
        outcome = run(restless(seed))
        assert outcome.violations == [], f"seed {seed}"
        activated += outcome.counts["keys: activated"]
    assert activated > 12


@pytest.mark.parametrize(
    ("forget", "first"), [(ask_nobody, 5), (take_silence_for_an_answer, 26), (leave_copies_out, 26)]
)
def test_a_rule_that_is_switched_off_is_missed(forget: Any, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``first``: from which seed histories are tried: one that showed it."""
    monkeypatch.setattr(keys, "EAGER", 1.0)
    forget(monkeypatch)
    for seed in range(first, first + MOST):
        violations = run(restless(seed)).violations
        if violations:
            assert any(line.startswith("keys:") for line in violations), violations
            return
    raise AssertionError("nobody was logged out in any history")
