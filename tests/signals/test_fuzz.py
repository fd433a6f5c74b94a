"""Ten thousand mutated tokens: no error of ours, nothing taken that is not good, and no long wait."""

from __future__ import annotations

import asyncio

import pytest

from .fuzz import fuzz

COUNT = 10_000
"""``PYTHONPATH=tests python -m signals.fuzz 1000000`` tries more."""


@pytest.mark.slow
def test_mutated_tokens_break_nothing_and_are_not_taken() -> None:
    seen = asyncio.run(fuzz(COUNT, seed=1))
    assert sum(seen[word] for word in ("taken", "invalid_request", "invalid_key", "invalid_issuer")) > COUNT * 0.9
    assert seen["400"] > COUNT // 60
    assert 0 < seen["taken"] < COUNT // 4, "some mutations change nothing that counts, most do"
