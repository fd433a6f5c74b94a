"""The sessions that a web server hosts: bounded, leased, closed for good (mission B2, protocol section 4)."""

from __future__ import annotations

import pytest

from coatcheck.replication.cache import NO_VERSION, Cache, Copy
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import History, Version

A = b"serverAA"
WRITE = Version(3, A, 2)


def copy(key: bytes = b"k", history: History = (), expires_at: int = 1000) -> Copy:
    made = Copy(key, Version(4, A, 0), history, b"body")
    made.expires_at = expires_at
    return made


def keys(cache: Cache) -> list[bytes]:
    return [held.key for held in cache]


def test_a_copy_begins_without_a_lease_and_known_to_nobody() -> None:
    made = copy()
    assert (made.lease_until, made.seen, made.promised, made.record) == (0.0, {}, NO_VERSION, None)


def test_tokens_carry_the_newest_write_not_the_claim() -> None:
    assert copy(history=(WRITE,)).promised == WRITE


@pytest.mark.parametrize(
    ("promised", "covered"),
    [
        (NO_VERSION, True),
        (WRITE, True),
        (Version(3, A, 1), True),
        (Version(3, A, 3), False),
        (Version(3, b"serverBB", 1), False),
        (Version(4, A, 0), False),
    ],
)
def test_what_a_copy_covers(promised: bytes, covered: bool) -> None:
    assert copy(history=(WRITE,)).covers(promised) is covered


def test_a_new_state_replaces_all_that_was_derived_from_the_old_one() -> None:
    held = copy(history=(WRITE,))
    held.record, held.review_at, held.lease_until = object(), 99, 5.0
    held.wrote(Version(4, A, 1), (WRITE, Version(4, A, 1)), b"new", 2000)
    assert (held.record, held.review_at, held.body, held.expires_at) == (None, 0, b"new", 2000)
    assert held.promised == Version(4, A, 1)
    assert held.lease_until == 5.0, "the lease belongs to the claim"


def test_a_cached_copy_is_a_candidate_without_payload() -> None:
    assert copy(history=(WRITE,)).as_entry() == Entry(Version(4, A, 0), (WRITE,), False, 0, b"")


def test_the_longest_unrenewed_copy_makes_room() -> None:
    cache = Cache(max_sessions=3)
    for key in (b"a", b"b", b"c"):
        cache.add(copy(key))
    cache.add(copy(b"a"))
    cache.add(copy(b"d"))
    assert keys(cache) == [b"c", b"a", b"d"]
    assert len(cache) == 3


def test_adding_again_replaces_and_takes_no_second_place() -> None:
    cache, newer = Cache(3), copy(b"a")
    cache.add(copy(b"a"))
    cache.add(newer)
    assert cache.get(b"a") is newer
    assert len(cache) == 1


def test_dropping_is_repeatable() -> None:
    cache = Cache(3)
    cache.add(copy(b"a"))
    cache.drop(b"a")
    cache.drop(b"a")
    assert cache.get(b"a") is None
    assert not cache.is_closed(b"a")


def test_a_closed_session_is_gone_and_stays_known_as_closed() -> None:
    cache = Cache(3)
    cache.add(copy(b"a"))
    cache.mark_closed(b"a")
    assert cache.get(b"a") is None
    assert cache.is_closed(b"a")
    assert not cache.is_closed(b"b")


def test_a_closed_session_does_not_come_back() -> None:
    cache = Cache(3)
    cache.mark_closed(b"a")
    cache.add(copy(b"a"))
    assert cache.get(b"a") is None


def test_the_closed_marks_are_bounded_oldest_first() -> None:
    cache = Cache(3, max_closed=2)
    for key in (b"a", b"b", b"c"):
        cache.mark_closed(key)
    assert [cache.is_closed(key) for key in (b"a", b"b", b"c")] == [False, True, True]


def test_marking_a_closed_session_again_pushes_no_other_out() -> None:
    cache = Cache(3, max_closed=2)
    for key in (b"a", b"b", b"b", b"b"):
        cache.mark_closed(key)
    assert cache.is_closed(b"a")
    assert cache.is_closed(b"b")


def test_dropping_the_expired_looks_at_no_more_than_it_was_told() -> None:
    cache = Cache(10)
    for number, expires_at in enumerate([100, 300, 200, 100]):
        cache.add(copy(b"%d" % number, expires_at=expires_at))
    assert cache.drop_expired(now_ms=200, limit=3) == 2
    assert keys(cache) == [b"1", b"3"]
    assert cache.drop_expired(now_ms=99, limit=9) == 0
    assert cache.drop_expired(now_ms=300, limit=9) == 2
    assert len(cache) == 0
