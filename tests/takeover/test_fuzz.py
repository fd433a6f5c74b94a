"""A slice of what ``takeover.fuzz`` does a million times; and nothing is left over of a thousand take-overs."""

from __future__ import annotations

import gc
import logging
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

import coatcheck
from tls.farm import make_certificates

from .fuzz import Fuzz
from .test_walk import Bench

INPUTS = 2000
"""Of each kind; a million were run once."""
TAKEOVERS = 1000
WARM_UP = 100
MOST_LEFT_BYTES = 20_000
"""More than that is a leak: 20 bytes for each take-over."""
KINDS = ["records", "frames", "client streams", "states", "inner links", "client hellos"]


@pytest.fixture(scope="module")
def certificate_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    make_certificates(folder)
    logging.disable(logging.WARNING)
    yield folder / "server.pem"
    logging.disable(logging.NOTSET)


def test_no_mutated_input_is_accepted_and_none_does_harm(certificate_file: Path) -> None:
    fuzz = Fuzz(1, certificate_file)
    assert list(fuzz.kinds) == KINDS
    for kind in KINDS:
        came = fuzz.run(kind, INPUTS)
        assert sum(came.values()) == INPUTS


@pytest.mark.slow
def test_a_thousand_takeovers_leave_nothing_over(certificate_file: Path) -> None:
    """By deaths and by drains in turn; what is counted are the bytes that the product's own lines hold."""
    farm = Bench(certificate_file)
    client = farm.client()
    states = farm.relay.traffic.servers

    def take_over(number: int) -> None:
        if number % 2:
            for link in [end for end in farm.director.ends if end is not client.end]:
                # A web server's end of the link breaks, as it does when its process dies.
                link._in.ended = True
        else:
            for state in states:
                farm.set_draining(state, draining=state is client.machine.server)
        farm.ask(client)
        farm.clock.now += 1.0
        farm.tick()

    for number in range(WARM_UP):
        take_over(number)
    tracemalloc.start()
    try:
        for number in range(WARM_UP):
            take_over(number)
        before = held()
        for number in range(TAKEOVERS):
            take_over(number)
        left = held() - before
    finally:
        tracemalloc.stop()
    assert farm.outcomes["moved"] >= TAKEOVERS // 2 <= farm.outcomes["resume"]
    assert left < MOST_LEFT_BYTES, f"{left} bytes are left over"


def held() -> int:
    gc.collect()
    ours = tracemalloc.Filter(inclusive=True, filename_pattern=str(Path(coatcheck.__file__).parent / "*"))
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)
