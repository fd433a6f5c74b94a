"""Eight seconds of chaos on each store; ``python tests/pool/chaos.py --seconds 60`` has more."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..chaos import run_chaos


@pytest.mark.slow
@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_kills_and_expiry_at_random_are_nobodys_business(store: str, tmp_path: Path) -> None:
    outcome = run_chaos(8, store, tmp_path, seed=20)
    assert outcome.wrongs() == [], outcome.summary()
    assert outcome.calls > 100 and outcome.kills >= 3
    assert outcome.counter("expired") > 0 and outcome.counter("killed") > 0
