"""The contract of a store that processes share: they come and go, are idle, fork, are killed; nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from store_backends import BACKENDS, Backend, MemoryBackend, new_key
from store_process import StoreProcess

from coatcheck.stores.sqlite_worker import SWEEP_PERIOD_S

HEALTH_CHECKS_S = 2.5 * SWEEP_PERIOD_S
"""So long idle, a store has looked after its files at least twice."""

SHARED = [name for name, kind in BACKENDS.items() if kind is not MemoryBackend]


@pytest.fixture(scope="module", params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each backend that processes can share."""
    backend = BACKENDS[request.param](tmp_path_factory.mktemp(request.param))
    backend.start()
    yield backend
    backend.stop()


@contextmanager
def process(backend: Backend) -> Iterator[StoreProcess]:
    """A process that uses the store; killed if the test did not let it end."""
    started = StoreProcess(backend)
    try:
        yield started
    finally:
        started.kill()


def test_a_write_after_idle_time_outlives_those_who_came_and_went(shared: Backend) -> None:
    first, second = new_key(), new_key()
    with process(shared) as writer:
        assert writer.put(first, 1) == "accepted"
        time.sleep(HEALTH_CHECKS_S)
        with process(shared) as passer_by:
            assert passer_by.get(first) == 1
            passer_by.close()
        assert writer.put(second, 1) == "accepted"
        assert writer.put(first, 2, seen=1) == "accepted"
        with process(shared) as reader:
            assert (reader.get(first), reader.get(second)) == (2, 1)
            reader.close()
        assert (writer.get(first), writer.get(second)) == (2, 1)
        writer.close()
    with process(shared) as heir:
        assert (heir.get(first), heir.get(second)) == (2, 1)


def test_a_child_that_a_process_forks_takes_nothing_with_it_when_it_ends(shared: Backend) -> None:
    key = new_key()
    with process(shared) as writer:
        assert writer.put(key, 1) == "accepted"
        writer.fork()
        with process(shared) as passer_by:
            passer_by.close()
        assert writer.put(key, 2, seen=1) == "accepted"
        with process(shared) as reader:
            assert reader.get(key) == 2


@pytest.mark.parametrize("seed", range(2))
def test_processes_that_come_and_go_lose_nothing(shared: Backend, seed: int) -> None:
    """A drawn story: three at most write, are idle, end in order or are killed; a newcomer sees every write."""
    dice = random.Random(seed)
    keys = [new_key() for _ in range(4)]
    stored: dict[bytes, int] = {}
    here: list[StoreProcess] = []
    try:
        for _ in range(12):
            if not here or (len(here) < 3 and dice.random() < 0.4):
                here.append(StoreProcess(shared))
                assert {key: here[-1].get(key) for key in stored} == stored
            elif (drawn := dice.random()) < 0.2:
                time.sleep(1.2 * SWEEP_PERIOD_S)
            elif drawn < 0.5:
                leaver = here.pop(dice.randrange(len(here)))
                leaver.close() if drawn < 0.4 else leaver.kill()
            else:
                key, writer = dice.choice(keys), dice.choice(here)
                seen = stored.get(key)
                assert writer.get(key) == seen
                assert writer.put(key, (seen or 0) + 1, seen) == "accepted"
                stored[key] = (seen or 0) + 1
    finally:
        for left in here:
            left.kill()
    with process(shared) as last:
        assert {key: last.get(key) for key in stored} == stored
