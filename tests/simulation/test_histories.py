"""Seeded histories: fresh ones with every run, those that once failed, and the same again for the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.simulation.bare.history import run
from coatcheck.simulation.scenario import draw

HERE = Path(__file__).parent
FRESH_HISTORIES = 100
OF_A_PROFILE = {"many": 2}
"""Fresh histories of a profile; of the others 8. One of ``many`` takes as long as four of another."""


def failed_seeds() -> list[tuple[str, int]]:
    lines = (HERE / "failed_seeds.txt").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(word[0], int(word[1])) for word in words]


@pytest.mark.slow
def test_fresh_seeds() -> None:
    base = int.from_bytes(os.urandom(5), "big") * 10_000
    print(f"replay with: coatcheck simulate --seeds {FRESH_HISTORIES} --first-seed {base}")
    answers = 0
    for seed in range(base, base + FRESH_HISTORIES):
        outcome = run(draw(seed, "mixed"))
        assert outcome.violations == [], f"coatcheck simulate --seed {seed} --trace"
        answers += outcome.counts["answers"]
    assert answers > 5 * FRESH_HISTORIES, "histories in which hardly any request is answered prove nothing"


@pytest.mark.parametrize(
    "profile",
    [
        "calm",
        "expiry",
        "storm",
        "duel",
        "leases",
        "sleepers",
        "thieves",
        "wide",
        "lists",
        "newcomers",
        "clocks",
        "many",
        "links",
        "users",
        "sites",
    ],
)
def test_profiles(profile: str) -> None:
    base = int.from_bytes(os.urandom(5), "big") * 10_000
    for seed in range(base, base + OF_A_PROFILE.get(profile, 8)):
        outcome = run(draw(seed, profile))  # type: ignore[arg-type]
        assert outcome.violations == [], f"coatcheck simulate --seed {seed} --trace --profile {profile}"


@pytest.mark.parametrize(("profile", "seed"), failed_seeds())
def test_seeds_that_once_failed(profile: str, seed: int) -> None:
    assert run(draw(seed, profile)).violations == []  # type: ignore[arg-type]


def test_real_seals_change_nothing_but_the_bytes() -> None:
    """Multiples of 64 run with the product's own seals; nothing readable is stored (invariant 7)."""
    scenario = draw(64 * 7)
    assert scenario.real_seal
    outcome = run(scenario, traced=True)
    assert outcome.violations == []
    assert outcome.steps > 100


def test_session_servers_hold_nothing_readable() -> None:
    import msgspec

    from coatcheck.simulation.bare.farm import BareFarm
    from coatcheck.simulation.history import _until
    from coatcheck.simulation.trace import Trace

    farm = BareFarm(msgspec.structs.replace(draw(5, "calm"), real_seal=True, browsers=1), Trace(False))
    for browser in farm.browsers:
        browser.after(0.001, browser.tick)
    assert not _until(farm, 120.0, lambda: all(browser.done for browser in farm.browsers))
    payloads = [row[0].payload for server in farm.servers.values() for row in server.entries.values()]
    blobs = [blob for log in farm.ledger.logs.values() for blob in log.blobs.values() if len(blob) > 3]
    assert payloads
    assert blobs
    assert not any(blob in payload for blob in blobs for payload in payloads)


def test_the_same_seed_gives_the_same_trace_in_any_process() -> None:
    code = (
        "from coatcheck.simulation.bare.history import run\n"
        "from coatcheck.simulation.scenario import draw\n"
        "print([run(draw(seed), True).digest for seed in (4, 11, 64, 23)])\n"
    )
    seen = set()
    for hash_seed in ("0", "1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
        )
        seen.add(done.stdout)
    here = [run(draw(seed), True).digest for seed in (4, 11, 64, 23)]
    assert seen == {f"{here}\n"}
    assert len(set(here)) == 4


def test_tracing_does_not_change_the_history() -> None:
    for seed in (7, 8, 9):
        assert run(draw(seed)).steps == run(draw(seed), True).steps
