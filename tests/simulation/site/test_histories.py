"""Histories of the shipped shells: they hold, they repeat themselves to the byte, and a failing one is shrunk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import get_args

import pytest

from coatcheck.drivers.asyncio_driver import World
from coatcheck.host_clock import steady_clock, wall_ms
from coatcheck.replication.puts import Puts
from coatcheck.simulation import main
from coatcheck.simulation.history import Outcome
from coatcheck.simulation.scenario import Profile, draw
from coatcheck.simulation.site.history import run
from coatcheck.simulation.site.shrink import shrink
from coatcheck.simulation.world.world import SimulatedWorld

PROFILES = [profile for profile in get_args(Profile) if profile != "mixed"]


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_fresh_seeds(profile: Profile) -> None:
    base = int.from_bytes(os.urandom(5), "big") * 10_000
    answers = 0
    for seed in range(base, base + 2):
        told = run(draw(seed, profile))
        assert told.violations == [], f"coatcheck simulate --shipped --seed {seed} --profile {profile} --trace"
        answers += told.counts["answers"]
    assert answers > 2, "histories in which hardly any request is answered prove nothing"


SEEDS: list[tuple[int, Profile]] = [(4, "all"), (64, "clocks"), (23, "lists"), (8, "director")]


def digests() -> list[str]:
    return [run(draw(seed, profile), traced=True).digest for seed, profile in SEEDS]


def test_the_same_seed_gives_the_same_history_in_any_process() -> None:
    """No real time, no randomness of the system, no order of hashes, no threads."""
    code = (
        "import random; random.random()\n"
        "from coatcheck.simulation.site.history import run\n"
        "from coatcheck.simulation.scenario import draw\n"
        f"print([run(draw(seed, profile), True).digest for seed, profile in {SEEDS!r}])\n"
    )
    seen = set()
    for hash_seed in ("0", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        seen.add(done.stdout)
    threads = threading.active_count()
    here = digests()
    assert seen == {f"{here}\n"}
    assert len(set(here)) == len(SEEDS)
    assert threading.active_count() == threads


def test_tracing_does_not_change_a_history() -> None:
    for seed in (7, 8):
        assert run(draw(seed)).steps == run(draw(seed), traced=True).steps


def test_a_failing_history_is_shrunk_to_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is earned below target is served when a notice was missed: a few of many parts are to blame."""

    def earn(self: Puts, copy: object, sent_at: float, holders: int) -> None:
        copy.lease_until = sent_at + self._policy.lease_s  # type: ignore[attr-defined]

    monkeypatch.setattr(Puts, "earn_lease", earn)
    for seed in (7, 9, 10, 12, 23):
        scenario = draw(seed, "storm")
        told = run(scenario)
        if told.violations and told.violations[0].startswith("lease"):
            break
    else:
        pytest.fail("nobody missed the rule")
    least = shrink(scenario, told)
    assert len(least.parts) < len(told.parts)
    assert least.violation.startswith("lease")
    assert run(scenario, only=frozenset(least.parts)).violations[0] == least.violation
    for part in least.parts:
        assert not run(scenario, only=frozenset(least.parts) - {part}).violations, f"{part} could be left out"


def test_shrinking_ends_after_so_many_histories() -> None:
    """Every half fails, but none of the quarters: as a run that never agrees with itself."""
    calls = []

    def run_again(scenario: object, traced: bool, only: frozenset[str] | None) -> Outcome:
        calls.append(only)
        return Outcome(1, ["I1: x"] if len(calls) % 7 == 0 else [], None, 0, "", [], [])  # type: ignore[arg-type]

    told = Outcome(1, ["I1: x"], None, 0, "", [], [f"part-{number}" for number in range(64)])  # type: ignore[arg-type]
    least = shrink(draw(1), told, run_again)
    assert least.runs == len(calls) <= 400


def test_the_command_replays_a_part_of_a_history(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shipped", "--seed", "3", "--only", "browser-1.1,browser-1.2", "--trace"]) == 0
    told = capsys.readouterr().out
    assert "browser-1 to web-" in told
    assert "FAULT" not in told
    assert main(["--shipped", "--seeds", "3", "--profile", "calm"]) == 0
    assert "3 histories" in capsys.readouterr().out
    assert main(["--only", "fault-1"]) == 2


def test_no_clock_of_the_shells_was_bound_before_the_world_took_over() -> None:
    """It would show the real time, and the farm's time would stand still in a history."""
    world = SimulatedWorld(1, lambda text, error: pytest.fail(text))
    with world.running():
        shells = World({}, lambda event: None)
        before = steady_clock()(), wall_ms(), shells.now_ms()
        world.run(100.0)
        after = steady_clock()(), wall_ms(), shells.now_ms()
    assert [round(late - early) for early, late in zip(before, after, strict=True)] == [100, 100_000, 100_000]
