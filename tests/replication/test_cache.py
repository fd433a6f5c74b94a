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


OWN, OLDER = Version(4, A, 0), Version(3, b"serverBB", 7)


def test_what_a_session_server_showed_is_known_until_it_shows_something_else() -> None:
    held = copy()
    held.saw({"s1": OWN, "s2": None})
    held.saw({"s3": OLDER})
    assert held.seen == {"s1": OWN, "s3": OLDER}
    assert [held.seen_on(name) for name in ("s1", "s2", "s3", "s4")] == [OWN, None, OLDER, None]
    assert held.seen_on_each(("s3", "s2", "s1")) == {"s3": OLDER, "s2": None, "s1": OWN}
    assert [held.is_on(name) for name in ("s1", "s2", "s3")] == [True, False, False]
    held.saw({"s3": None})
    assert held.seen == {"s1": OWN}
    held.saw({"s1": None})
    assert held.seen == {}
    assert held.seen_on_each(("s1",)) == {"s1": None}


def test_a_write_that_some_have_taken_leaves_what_the_others_hold() -> None:
    held, written = copy(), OWN.next_write()
    held.stored_on(["s1", "s2"], OWN)
    held.stored_on(["s2"], written)
    assert held.seen == {"s1": OWN, "s2": written}
    held.wrote(written, (written,), b"new", 0)
    assert (held.is_on("s1"), held.is_on("s2")) == (False, True)
    held.stored_on(["s2", "s1"], written)
    assert held.seen_on_each(("s1", "s2", "s3")) == {"s1": written, "s2": written, "s3": None}


def test_a_copy_that_is_changed_on_its_own_leaves_the_other_as_it_was() -> None:
    held, written = copy(history=(WRITE,)), OWN.next_write()
    held.saw({"s1": OWN, "s2": OLDER})
    held.lease_until = 5.0
    other = held.without_lease()
    other.wrote(written, (WRITE, written), b"new", 0)
    other.stored_on(["s1", "s2"], written)
    assert (held.seen, held.version, held.history, held.body) == ({"s1": OWN, "s2": OLDER}, OWN, (WRITE,), b"body")
    assert (held.lease_until, other.lease_until) == (5.0, 0.0)
    assert (other.version, other.history) == (written, (WRITE, written))


def test_only_the_records_that_were_decoded_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "MAX_DECODED", 2)
    cache, (first, second, third) = Cache(3), (copy(b"a"), copy(b"b"), copy(b"c"))
    cache.keep_decoded(first, "first")
    cache.keep_decoded(second, "second")
    cache.keep_decoded(first, "first, as it was written since")
    assert [held.record for held in (first, second)] == ["first, as it was written since", "second"]
    cache.keep_decoded(third, "third")
    assert [held.record for held in (first, second, third)] == ["first, as it was written since", None, "third"]


def many(count: int) -> list[Copy]:
    return [copy(number.to_bytes(16, "big"), expires_at=number) for number in range(count)]


def test_many_sessions_lie_in_several_dicts_and_the_bound_is_for_all_together() -> None:
    cache, copies = Cache(5 * Cache.SHARD_SESSIONS), many(5 * Cache.SHARD_SESSIONS + 100)
    for one in copies:
        cache.add(one)
    assert len(cache) == 5 * Cache.SHARD_SESSIONS == len(list(cache)) == len(set(cache.keys()))
    assert [cache.get(one.key) for one in copies[:100]] == [None] * 100, "the oldest made room"
    assert all(cache.get(one.key) is one for one in copies[100:])
    assert cache.drop_expired(now_ms=10**9, limit=80) == 80
    assert len(cache) == 5 * Cache.SHARD_SESSIONS - 80


def test_a_session_makes_room_for_itself_though_none_like_it_is_hosted() -> None:
    cache = Cache(2 * Cache.SHARD_SESSIONS)
    for number in range(2 * Cache.SHARD_SESSIONS + 1):
        cache.add(copy((2 * number).to_bytes(16, "big")))
    assert len(cache) == 2 * Cache.SHARD_SESSIONS
    cache.add(copy((1).to_bytes(16, "big")))
    assert len(cache) == 2 * Cache.SHARD_SESSIONS
    assert cache.get((1).to_bytes(16, "big")) is not None


def test_sessions_that_moved_are_not_counted_as_hosted() -> None:
    cache = Cache(4)
    a, b, c = copy(b"a"), copy(b"b"), copy(b"c")
    for one in (a, b, c):
        cache.add(one)
    cache.note_moved(copy(b"d"))
    assert cache.hosted() == 3, "one that is only being claimed is not hosted yet"
    for one in (a, b, b, c):
        cache.note_moved(one)
    assert cache.hosted() == 0
    cache.note_mine(a)
    cache.note_mine(a)
    cache.drop(b"b")
    cache.add(copy(b"c"))
    assert (cache.hosted(), len(cache)) == (2, 2)
    cache.note_moved(a)
    cache.add(a)
    assert (cache.hosted(), len(cache)) == (1, 2)
    cache.drop_expired(now_ms=10**6, limit=4)
    assert (cache.hosted(), len(cache)) == (0, 0)
