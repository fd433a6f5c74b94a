"""Hostile input, in small: ``python -m security.hostile --count 1000000`` does it in large."""

from __future__ import annotations

import pytest

from . import hostile

COUNT = 10_000
COUNTS = {"ticket": 2_500, "service-header": 2_000, "service-body": 2_000}
"""Of what takes longer than most."""


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_no_bytes_raise_hang_grow_or_open_anything(kind: str) -> None:
    count = COUNTS.get(kind, COUNT)
    report = hostile.KINDS[kind](count, seed=7)
    assert report.inputs == count
    assert 0 < report.understood < count, "some damage does not hurt, or the readers were not reached"
