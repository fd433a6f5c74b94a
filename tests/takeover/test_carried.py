"""What a director believes of a web server, and what it keeps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.director.rules.actions import Order
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Health, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Traffic
from coatcheck.takeover.rules.carried import CarriedConnection, Loss, ServerSays
from coatcheck.takeover.rules.inner_frames import (
    FROM_DIRECTOR,
    FROM_SERVER,
    MAX_STATE_BYTES,
    Frame,
    commit,
    frame,
    read_hello,
    repeatable,
)
from coatcheck.takeover.rules.passing import PassedConnection
from coatcheck.takeover.rules.passing_state import Addresses, PassedState
from coatcheck.takeover.rules.tls_records import BadRecord, RecordSplitter

KEPT = 10_000
ADDRESS = ("192.0.2.1", 40_000)


def record(size: int = 20, kind: int = 23) -> bytes:
    return bytes((kind, 3, 3)) + size.to_bytes(2, "big") + bytes(size)


def begun() -> CarriedConnection:
    """A connection whose handshake is done, and answered for."""
    carried = CarriedConnection(KEPT)
    carried.give(ADDRESS, ADDRESS, looked_at=False)
    carried.from_client(record(kind=22) + record())
    carried.from_server(record(kind=22) + record() + frame(Frame.STATE, b"state") + frame(Frame.ESTABLISHED))
    carried.from_server(commit(1, 1) + record())
    assert carried.is_settled and carried.loss() is Loss.RESUME
    return carried


def test_only_what_has_come_can_be_answered_and_no_answer_is_taken_back() -> None:
    carried = begun()
    for answered in (0, 2, 3, 1 << 63):
        with pytest.raises(BadRecord, match="did not come"):
            carried.from_server(commit(answered, 0))
    carried.from_client(record() * 2)
    carried.from_server(commit(3, 0))
    with pytest.raises(BadRecord, match="did not come"):
        carried.from_server(commit(2, 0))


def test_an_answer_counts_when_all_of_it_has_left() -> None:
    carried = begun()
    carried.from_client(record() * 2)
    carried.from_server(commit(3, 3))
    assert carried.loss() is Loss.RESUME and not carried.is_settled
    for _ in range(2):
        carried.from_server(record())
        assert carried.loss() is Loss.HALF_ANSWERED
    carried.from_server(record())
    assert carried.loss() is Loss.RESUME and carried.is_settled


def test_an_announcement_of_a_dead_web_server_does_not_count_for_the_next_one() -> None:
    carried = begun()
    carried.from_client(record())
    carried.from_server(commit(2, 1))
    given_to = RecordSplitter(0, 255).feed(carried.give(ADDRESS, ADDRESS, looked_at=True))
    assert read_hello(given_to[0]).committed == 1 and len(given_to) == 2
    carried.from_server(record())
    assert carried.loss() is Loss.HALF_ANSWERED, "nobody has announced this record"


def test_what_is_to_be_kept_for_the_next_web_server_is_bounded_and_fits_into_a_hello() -> None:
    carried = begun()
    for sent in (frame(Frame.STATE, bytes(MAX_STATE_BYTES + 1)), repeatable(0, 0, bytes(MAX_STATE_BYTES + 1))):
        with pytest.raises(BadRecord, match="8193 bytes"):
            carried.from_server(sent)
    carried.from_client(record())
    largest = frame(Frame.STATE, bytes(MAX_STATE_BYTES)), repeatable(1 << 63, 0, bytes(MAX_STATE_BYTES))
    carried.from_server(b"".join(largest) + record())
    address = ("0123:4567:89ab:cdef:0123:4567:89ab:cdef%interface-with-a-name", 65_535)
    said = RecordSplitter(*FROM_DIRECTOR).feed(carried.give(address, address, looked_at=True))
    assert read_hello(said[0]).state == bytes(MAX_STATE_BYTES) == read_hello(said[0]).repeatable


@given(st.lists(st.integers(0, 3000), max_size=40), st.integers(0, 40))
def test_never_more_is_kept_than_the_bound_and_it_is_whole_or_known_not_to_be(sizes: list[int], answered: int) -> None:
    carried = begun()
    for size in sizes:
        carried.from_client(record(size))
        assert sum(len(kept) for _, kept in carried._kept) <= KEPT
    if answered <= len(sizes):
        carried.from_server(commit(1 + answered, 0))
        assert sum(len(kept) for _, kept in carried._kept) <= KEPT
    behind = [record(size) for size in sizes[answered if answered <= len(sizes) else 0 :]]
    if carried.is_kept_whole:
        given_to = RecordSplitter(0, 255).feed(carried.give(ADDRESS, ADDRESS, looked_at=True))
        assert given_to[1:] == behind
    else:
        assert carried.loss() is Loss.NOT_KEPT


@given(st.lists(st.one_of(
    st.builds(record, st.integers(0, 50), st.sampled_from([20, 21, 22, 23])),
    st.builds(frame, st.sampled_from(list(Frame)), st.binary(max_size=30)),
    st.builds(commit, st.integers(0, 9), st.integers(0, 3)), st.binary(max_size=20),
), max_size=12))  # fmt: skip
def test_whatever_a_web_server_says_nothing_but_records_reaches_the_client(words: list[bytes]) -> None:
    carried, out = begun(), b""
    try:
        for word in words:
            out += carried.from_server(word)[0]
    except BadRecord:
        pass
    cut = RecordSplitter()
    cut.feed(out)
    assert cut.is_empty
    assert carried._committed <= carried.received


@pytest.mark.parametrize("kind", sorted({*range(256)} - {*range(FROM_SERVER[0], 24)} - {*Frame}))
def test_a_frame_that_there_is_not_is_refused(kind: int) -> None:
    with pytest.raises(BadRecord):
        begun().from_server(bytes((kind, 3, 3, 0, 0)))


@pytest.mark.parametrize("kind", [Frame.HELLO, Frame.MOVE])
def test_a_web_server_that_speaks_as_a_director_is_refused(kind: Frame) -> None:
    with pytest.raises(BadRecord):
        begun().from_server(frame(kind))


def test_words_of_the_web_server_are_handed_on() -> None:
    words = [Frame.RELEASED, Frame.CLOSE, Frame.BREAK]
    said = begun().from_server(b"".join(map(frame, words)))[1]
    assert said == [ServerSays.RELEASED, ServerSays.CLOSE, ServerSays.BREAK]


def test_without_a_state_nothing_is_kept_and_nobody_goes_on() -> None:
    carried = CarriedConnection(KEPT)
    carried.from_client(record(kind=22))
    carried.from_server(record(kind=22) + frame(Frame.ESTABLISHED))
    carried.from_client(record(3000) * 50)
    assert not carried._kept and carried.loss() is Loss.NO_STATE


# The machine


def passed() -> tuple[PassedConnection, Traffic]:
    traffic = Traffic(Limits(), servers_of([("web-1", "one"), ("web-2", "two")]), 0.0, max_connections=10, tls=False)
    for state in traffic.servers:
        state.health = Health.HEALTHY
    machine = PassedConnection(traffic, traffic.enter("192.0.2.1"), Addresses(ADDRESS, ADDRESS), KEPT, Counter())
    machine.opened()
    machine.client_bytes(record(kind=22))
    machine.connected(reused=False, full=False)
    machine.client_bytes(record())
    machine.server_bytes(record(kind=22) + record() + frame(Frame.STATE, b"state") + frame(Frame.ESTABLISHED))
    machine.server_bytes(commit(1, 1) + record())
    return machine, traffic


def test_a_client_that_takes_nothing_ends_also_when_its_web_server_is_another_one_now() -> None:
    machine, traffic = passed()
    machine.client_full(50_000)
    machine.server_died()
    assert Order.END_SERVER in machine.actions
    machine.server_ended(Ending.BROKEN)
    machine.connected(reused=False, full=False)
    machine.actions.clear()
    traffic.tick(machine.due_at, lambda member: 50_000)
    assert machine.state is PassedState.CLOSING and Order.RESET_CLIENT in machine.actions


def test_the_loss_of_one_web_server_counts_once_however_many_links_it_costs() -> None:
    """For a moment the kernel takes links for a process that is just ending."""
    machine, _ = passed()
    for links in (1, 2):
        machine.server_ended(Ending.BROKEN)
        machine.connected(reused=False, full=False)
        assert machine._counts == {"resume": 1}, links
    machine.server_bytes(frame(Frame.ESTABLISHED))
    machine.server_ended(Ending.BROKEN)
    assert machine._counts == {"resume": 2}


def test_a_link_that_takes_nothing_from_the_first_moment_holds_the_client_back() -> None:
    machine, _ = passed()
    machine.server_bytes(frame(Frame.RELEASED))
    machine.actions.clear()
    machine.connected(reused=False, full=True)
    assert Order.PAUSE_CLIENT in machine.actions
    machine.server_ready()
    assert machine.actions[-1] is Order.RESUME_CLIENT
