"""The table in memory: expiry without timers, bounded sweeps, exact accounts. Time is passed in."""

from __future__ import annotations

import contextlib
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.put_rule import NOTHING_SEEN, Verdict
from coatcheck.replication.version import Version
from coatcheck.session_server.table import ROW_OVERHEAD_BYTES, SLOT_MS, STEPS_PER_BUCKET, EntryTable, TableFull
from coatcheck.session_server.tombstones import BUCKETS, TOMBSTONE_OVERHEAD_BYTES

MAX_BYTES = 10**9


def raw(epoch: int = 1, size: int = 10, *, closed: bool = False) -> bytes:
    return Entry(Version(epoch, b"AAA-0001", 0), (), closed, 0, bytes(size)).encode()


def key(number: int) -> bytes:
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + number.to_bytes(8, "big")


def table(max_bytes: int = MAX_BYTES) -> EntryTable:
    return EntryTable(lambda server_id, notice: None, max_bytes)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "close", "get", "sweep"]),
        st.integers(0, 5),
        st.integers(1, 20_000),
        st.integers(0, 5_000),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(operations=OPERATIONS)
def test_expiry_and_accounts_agree_with_a_plain_model(operations: list[tuple[str, int, int, int]]) -> None:
    real, now = table(), 10_000
    model: dict[bytes, tuple[bytes, int]] = {}
    for epoch, (what, number, life, passes) in enumerate(operations, 1):
        now += passes
        model = {k: (b, expires) for k, (b, expires) in model.items() if expires > now}
        if what in ("put", "close"):
            new = raw(epoch, size=life % 50, closed=what == "close")
            old = model.get(key(number))
            seen = old[0][2:18] if old else b""
            if real.put(key(number), seen, life, new, now) is not Verdict.REFUSED:
                model[key(number)] = (new, now + life)
            else:
                assert old is not None
                assert decode_entry(old[0], 1).closed
        elif what == "sweep":
            real.sweep(now, 3)
        for k in map(key, range(6)):
            expected = model.get(k)
            assert real.get(k, now) == ((expected[0], expected[1] - now) if expected else None)
    while real.sweep(now + 30_000, 5):
        pass
    real.sweep(now + 30_000, STEPS_PER_BUCKET * BUCKETS)
    assert (real.entries, real.tombstones, real.held_bytes) == (0, 0, 0)
    assert real._slots == {}
    assert real._slot_order == []


def test_a_sweep_takes_bounded_steps_and_drops_all_in_the_end() -> None:
    real = table()
    for number in range(5000):
        real.put(key(number), b"", 1000 + number % 3000, raw(), 0)
    assert real.held_bytes == 5000 * (len(raw()) + ROW_OVERHEAD_BYTES)
    assert real.sweep(999, 100) == 0
    late = 4000 + 2 * SLOT_MS
    looked = 0
    while step := real.sweep(late, 100):
        assert step <= 100
        looked += step
    assert looked == 5000
    assert (real.entries, real.held_bytes) == (0, 0)


def test_renewed_lives_cost_no_more_places_in_the_wheel() -> None:
    real = table()
    for at in range(10_000):
        real.put(key(1), b"", 60_000, raw(), at)
        real.put(key(2), b"", 60_000 - at, raw(), at)
        real.sweep(at, 2)
    assert sum(len(keys) for keys in real._slots.values()) < 60


def test_a_scan_that_is_interrupted_by_puts_misses_nothing_that_stays() -> None:
    real = table()
    for number in range(2000):
        real.put(key(number), b"", 10**6, raw(), 0)
    found: set[bytes] = set()
    cursor, number = 0, 2000
    while True:
        cursor, keys = real.scan(cursor, 100, 1)
        found.update(keys)
        assert len(keys) < 110
        if not cursor:
            break
        for _ in range(50):
            real.put(key(number), b"", 10**6, raw(), 1)
            number += 1
    assert {key(number) for number in range(2000)} <= found


@pytest.mark.parametrize("cursor", [4096, 10**18, -1])
def test_a_strange_cursor_ends_or_begins(cursor: int) -> None:
    assert scanned(table(), 0, cursor) == []


def test_a_scan_of_few_keys_is_one_step_also_when_many_were_there_before() -> None:
    real = table()
    assert real.scan(0, 100, 0) == (0, [])
    for number in range(3000):
        real.put(key(number), b"", 1000 if number else 10**6, raw() if number % 2 else raw(closed=True), 0)
    assert real.scan(0, 100, 0)[0] > 0
    for number in range(1, 3000):
        assert real.get(key(number), 2000) is None
    assert scanned(real, 2000) == [key(0)], "what has gone is passed over from now on"
    assert real.scan(0, 100, 2000) == (0, [key(0)])
    real.put(key(3001), b"", 1000, raw(), 2000)
    assert set(scanned(real, 2000)) == {key(0), key(3001)}


def scanned(real: EntryTable, now_ms: int, cursor: int = 0) -> list[bytes]:
    """All keys, whatever number of steps that takes."""
    found: list[bytes] = []
    while True:
        cursor, keys = real.scan(cursor, 100, now_ms)
        found += keys
        if not cursor:
            return found


def test_full_is_told_before_anything_changes() -> None:
    size = len(raw()) + ROW_OVERHEAD_BYTES
    real = table(max_bytes=2 * size)
    real.put(key(1), b"", 1000, raw(), 0)
    real.put(key(2), b"", 1000, raw(), 0)
    for number, new in ((3, raw()), (3, raw(closed=True)), (1, raw(size=11))):
        with pytest.raises(TableFull):
            real.put(key(number), b"", 1000, new, 0)
    assert real.get(key(1), 0) == (raw(), 1000)
    assert real.get(key(3), 0) is None
    assert real.put(key(1), b"", 1000, raw(closed=True, size=0), 0) is Verdict.ACCEPTED_NOTIFY
    assert real.put(key(2), b"", 1000, raw(), 1500) is Verdict.ACCEPTED, "what expired makes room"


@pytest.mark.parametrize("bad", [b"", b"\x01" * 18, b"\x02" + bytes(30), bytes(2**20 + 1), b"\x01\x02" + bytes(40)])
def test_what_is_no_entry_is_not_stored(bad: bytes) -> None:
    real = table()
    with pytest.raises(CorruptEntry):
        real.put(key(1), b"", 1000, bad, 0)
    assert real.entries == 0


def first(number: int, size: int = 100) -> bytes:
    """The first state of a session."""
    return Entry(Version(1, number.to_bytes(8, "big"), 1), (), False, 0, bytes(size)).encode()


def later(number: int, epoch: int = 1, seq: int = 2, size: int = 100) -> bytes:
    return Entry(Version(epoch, number.to_bytes(8, "big"), seq), (), False, 0, bytes(size)).encode()


def fill(real: EntryTable) -> int:
    """New sessions until one is refused; answers how many there are."""
    number = 0
    while True:
        try:
            real.put(key(number), b"", 60_000, first(number), 0)
        except TableFull:
            return number
        number += 1


@pytest.mark.parametrize("bounds", [{"max_bytes": 400_000}, {"max_bytes": MAX_BYTES, "max_entries": 1000}])
def test_a_flood_of_new_sessions_leaves_room_for_those_that_exist(bounds: dict[str, int]) -> None:
    real = EntryTable(lambda server_id, notice: None, **bounds)
    count = fill(real)
    assert real.is_full
    assert count > 500
    with pytest.raises(TableFull, match="25% is kept for sessions that exist"):
        real.put(key(10**6), b"", 60_000, first(1), 0)
    # A change of each, a claim by another web server, a logout: none is refused.
    for number in range(count):
        assert real.put(key(number), NOTHING_SEEN, 60_000, later(number, size=140), 0) is Verdict.ACCEPTED
    assert real.put(key(1), later(1)[2:18], 60_000, later(7, epoch=2, seq=0, size=140), 0) is Verdict.ACCEPTED_NOTIFY
    for number in range(count):
        closed = Entry(Version(9, b"closing!", 0), (), True, 0, bytes(44)).encode()
        assert real.put(key(number), b"", 60_000, closed, 0) is Verdict.ACCEPTED_NOTIFY
    # What comes from another session server: sessions that exist there, and their ends.
    for number in range(count, count + count // 10):
        assert real.put(key(number), b"", 60_000, later(number, size=10), 0) is Verdict.ACCEPTED


def test_no_bound_is_ever_passed_but_by_closes_of_what_is_there() -> None:
    real = EntryTable(lambda server_id, notice: None, 100_000, 150)
    for number in range(1000):
        for new in (first(number), later(number, size=3000), raw(5, closed=True)):
            with contextlib.suppress(TableFull):
                real.put(key(number), b"", 60_000, new, 0)
            assert real.held_bytes <= 100_000
            assert real.entries <= 150
    assert real.tombstones > 10


def test_what_is_there_can_be_closed_however_full_it_is() -> None:
    """The tombstone of a small session may be larger than the session was, by a long history."""
    small = later(1, size=0)
    real = EntryTable(lambda server_id, notice: None, 10 * (len(small) + ROW_OVERHEAD_BYTES), 10)
    for number in range(10):
        real.put(key(number), b"", 60_000, small, 0)
    with pytest.raises(TableFull):
        real.put(key(10), b"", 60_000, small, 0)
    closed = Entry(Version(9, b"closing!", 0), (), True, 0, bytes(2 * ROW_OVERHEAD_BYTES)).encode()
    for number in range(10):
        assert real.put(key(number), b"", 60_000, closed, 0) is Verdict.ACCEPTED_NOTIFY
    assert (real.entries, real.tombstones) == (10, 10)


def tombstone(epoch: int) -> bytes:
    """As large as that of a session which one web server wrote: its history, and the empty text sealed."""
    version = Version(epoch, b"closing!", 0)
    return Entry(version, (Version(1, b"AAA-0001", 9),), True, 0, bytes(33)).encode()


def test_a_closed_session_costs_less_than_a_third_of_the_memory_of_a_session() -> None:
    """Measured, not reckoned: sessions of 430 bytes, and the same after they were closed. Of 100,000: a sixth."""
    count, real, rng = 20_000, table(), random.Random(1)
    keys = [rng.randbytes(16) for _ in range(count)]
    tracemalloc.start()
    try:
        for one in keys:
            real.put(
                one, b"", 43_200_000, Entry(Version(1, b"AAA-0001", 1), (), False, 0, rng.randbytes(411)).encode(), 0
            )
        of_sessions, accounted = tracemalloc.get_traced_memory()[0] / count, real.held_bytes / count
        for one in keys:
            assert real.put(one, b"", 43_200_000, tombstone(2), 0) is Verdict.ACCEPTED_NOTIFY
        of_tombstones = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert (real.entries, real.tombstones) == (count, count)
    assert of_tombstones < of_sessions / 3, (of_tombstones, of_sessions)
    assert of_sessions < accounted
    assert of_tombstones < real.held_bytes / count == len(tombstone(2)) + TOMBSTONE_OVERHEAD_BYTES


def test_tombstones_are_swept_a_few_buckets_at_a_time() -> None:
    real = table()
    for number in range(1000):
        real.put(key(number), b"", 1000 if number % 2 else 10**6, tombstone(2), 0)
    for _ in range(BUCKETS // 250 + 1):
        real.sweep(1000, 250 * STEPS_PER_BUCKET)
    assert (real.entries, real.tombstones) == (500, 500)
    assert real.held_bytes == 500 * (len(tombstone(2)) + TOMBSTONE_OVERHEAD_BYTES)
    assert {one for one in map(key, range(1000)) if real.get(one, 1000)} == set(map(key, range(0, 1000, 2)))


def test_sessions_whose_keys_begin_alike_are_closed_each_for_itself() -> None:
    """One bucket holds them all; a key that stands within another's entry is not taken for one."""
    real = table()
    keys = [b"\x07\x07" + bytes([number]) * 14 for number in range(8)]
    for number, one in enumerate(keys[:6]):
        inner = Entry(Version(2, b"closing!", 0), (), True, 0, keys[7] + bytes(9)).encode()
        real.put(one, b"", 1000 + number, inner, 0)
    assert real.get(keys[7], 0) is None
    assert scanned(real, 1002) == keys[3:6]
    assert real.get(keys[1], 1001) is None
    assert [real.get(one, 1001) is not None for one in keys[:7]] == [False, False, True, True, True, True, False]
    assert sorted(one for one, _, _ in real.hand_over(0)) == keys[2:6]
    assert real.entries == 4
