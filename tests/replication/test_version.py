"""Versions and histories: "stale" is "does not cover", never "is smaller than" (protocol section 1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.replication.version import (
    MAX_HISTORY,
    PACKED_BYTES,
    History,
    Version,
    covers,
    holds,
    newest_write,
    with_write,
)

A, B = b"serverAA", b"serverBB"
VERSIONS = st.builds(
    Version, st.integers(0, 2**32 - 1), st.binary(min_size=8, max_size=8), st.integers(0, 2**32 - 1)
)  # fmt: skip


@given(VERSIONS)
def test_packing_round_trips_and_keeps_the_order(version: Version) -> None:
    assert Version.unpack(bytes(version)) == version
    assert len(version) == PACKED_BYTES
    assert Version(version.epoch, version.owner, version.seq) == version


@given(VERSIONS, VERSIONS)
def test_versions_compare_as_their_numbers_do(one: Version, other: Version) -> None:
    numbers = (one.epoch, one.owner, one.seq)
    assert (one < other) is (numbers < (other.epoch, other.owner, other.seq))
    assert (one.claim == other.claim) is (numbers[:2] == (other.epoch, other.owner))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_unpacking_wants_exactly_16_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Version.unpack(bytes(size))


def test_a_version_names_the_web_server_to_notify() -> None:
    assert Version(1, b"webRANDO", 3).server_id == b"web"
    assert Version(1, A, 3).next_write() == Version(1, A, 4)
    assert str(Version(7, b"\x01" * 8, 2)) == "7.0101010101010101.2"


HISTORY: History = (Version(2, A, 5), Version(4, B, 1))


@pytest.mark.parametrize(
    ("history", "version", "covered"),
    [
        ((), None, True),
        (HISTORY, None, True),
        ((), Version(1, A, 1), False),
        (HISTORY, Version(2, A, 5), True),
        (HISTORY, Version(2, A, 1), True),
        (HISTORY, Version(2, A, 6), False),
        (HISTORY, Version(2, B, 5), False),
        (HISTORY, Version(4, B, 1), True),
        (HISTORY, Version(4, A, 1), False),
        (HISTORY, Version(3, A, 1), False),
        (HISTORY, Version(1, A, 1), False),
        (HISTORY, Version(5, A, 1), False),
    ],
)
def test_covers(history: History, version: Version | None, covered: bool) -> None:
    assert covers(history, version) is covered
    if version is not None:
        assert holds(history, version) is covered, "without forgetting, both say the same"


def test_a_large_claim_does_not_cover_a_small_write_that_it_has_not_seen() -> None:
    write, claim = Version(2, A, 1), Version(9, B, 0)
    assert claim > write
    assert not covers((Version(1, A, 1),), write)


FULL: History = tuple(Version(epoch, A, 1) for epoch in range(10, 10 + MAX_HISTORY))


@pytest.mark.parametrize(
    ("version", "covered", "held"),
    [
        (Version(9, B, 7), True, False),
        (Version(1, A, 1), True, False),
        (Version(10, A, 1), True, True),
        (Version(10, B, 1), False, False),
        (Version(10, A, 2), False, False),
        (Version(10 + MAX_HISTORY, A, 1), False, False),
    ],
)
def test_epochs_that_a_full_history_forgot_count_as_covered_but_not_as_held(
    version: Version, covered: bool, held: bool
) -> None:
    assert covers(FULL, version) is covered
    assert holds(FULL, version) is held
    assert not covers(FULL[1:], Version(1, A, 1)), "one that is not full has forgotten nothing"


def test_writes_of_one_epoch_take_one_place_in_the_history() -> None:
    history = with_write((), Version(1, A, 1))
    history = with_write(history, Version(1, A, 2))
    assert history == (Version(1, A, 2),)
    assert with_write(history, Version(3, B, 1)) == (Version(1, A, 2), Version(3, B, 1))
    assert newest_write(history) == Version(1, A, 2)
    assert newest_write(()) is None


def test_a_history_forgets_its_oldest_epoch_when_it_is_full() -> None:
    newest = Version(10 + MAX_HISTORY, B, 1)
    assert with_write(FULL, newest) == (*FULL[1:], newest)
    assert len(with_write(FULL, FULL[-1].next_write())) == MAX_HISTORY


# A run of one session: who owns it next (the epoch grows by what is drawn), and how often it writes then.
RUNS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([A, B]), st.integers(0, 3)), max_size=40)


@given(RUNS)
def test_a_history_covers_all_that_was_written_and_stays_bounded(run: list[tuple[int, bytes, int]]) -> None:
    history: History = ()
    epoch, written = 0, []
    for step, owner, writes in run:
        epoch += step
        for seq in range(1, writes + 1):
            written.append(Version(epoch, owner, seq))
            history = with_write(history, written[-1])
        assert len(history) <= MAX_HISTORY
        assert newest_write(history) == (written[-1] if written else None)
        assert all(covers(history, version) for version in written)
        assert not covers(history, Version(epoch + 1, owner, 1))
        assert all(not covers(history, last.next_write()) for last in history)
        assert list(history) == sorted(history)
