"""Hostile input, in small: ``hostile.py --count 1000000`` does it in large."""

from __future__ import annotations

import pytest

from . import hostile

COUNT = 20_000


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_no_bytes_raise_hang_grow_or_open_anything(kind: str) -> None:
    report = hostile.KINDS[kind](COUNT, seed=7)
    assert report.inputs == COUNT
    assert 0 < report.understood < COUNT, "some damage does not hurt, or the readers were not reached"
