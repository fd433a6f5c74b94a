"""Forty browsers, two farms, three Redis, and a network that is cut to pieces: a short run of ``make network-test``."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from .run import Run

SECONDS = 30.0


@pytest.mark.slow
def test_whatever_the_network_does_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"again with: SEED={seed} python -m pytest {Path(__file__).name}")
    report = asyncio.run(Run(seed, SECONDS, tmp_path).run())
    print("\n".join(report.lines()))
    assert report.broken == []
    assert sum(report.cuts.values()) >= 2
    answered = sum(count for words, count in report.answers.items() if words.endswith(" 200"))
    assert answered >= 10 * SECONDS, "a run in which hardly anything is answered proves nothing"
    assert all(report.carried[link] > 0 for link in ("a1", "a2", "a3", "b1", "b2", "b3")), "every link carries"
