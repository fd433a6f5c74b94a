"""Many histories: over several processes, and the sum of what they saw."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from coatcheck.simulation.bare import history as bare_history
from coatcheck.simulation.history import Outcome
from coatcheck.simulation.scenario import Profile, draw
from coatcheck.simulation.site import history as site_history

BATCH = 50


class Total(msgspec.Struct):
    """The sum over a campaign. ``failed``: the outcomes of seeds that broke an invariant."""

    histories: int = 0
    steps: int = 0
    seconds: float = 0.0
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    failed: list[Outcome] = msgspec.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.histories += 1
        self.steps += outcome.steps
        self.counts.update(outcome.counts)
        if outcome.violations:
            self.failed.append(outcome)


def run_all(seeds: Iterable[int], profile: Profile, jobs: int, stop_after: int, shipped: bool = False) -> Total:
    """Run the histories of ``seeds``, of the bare flows or of the ``shipped`` shells; ends early after ``stop_after``
    failures."""
    total = Total()
    began = time.monotonic()
    for outcome in _outcomes(list(seeds), profile, jobs, shipped):
        total.add(outcome)
        if len(total.failed) >= stop_after:
            break
        if total.histories % 5000 == 0 and sys.stderr.isatty():
            print(f"{total.histories} histories, {len(total.failed)} failed", file=sys.stderr)  # noqa: T201
    total.seconds = time.monotonic() - began
    return total


def _outcomes(seeds: list[int], profile: Profile, jobs: int, shipped: bool) -> Iterator[Outcome]:
    if jobs <= 1:
        for seed in seeds:
            yield _one((seed, profile, shipped))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        work = [(seed, profile, shipped) for seed in seeds]
        yield from pool.imap_unordered(_one, work, chunksize=BATCH)


def _one(work: tuple[int, Profile, bool]) -> Outcome:
    seed, profile, shipped = work
    return (site_history.run if shipped else bare_history.run)(draw(seed, profile))
