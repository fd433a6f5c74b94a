"""What a session server stores, and when it accepts a put (protocol section 3)."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import (
    HEAD_BYTES,
    MAX_ENTRY_BYTES,
    Entry,
    accepts,
    decode_entry,
    encode_header,
)
from coatcheck.replication.version import MAX_HISTORY, PACKED_BYTES, Version

A, B = b"serverAA", b"serverBB"
NUMBERS = st.integers(0, 2**32 - 1)
VERSIONS = st.builds(Version, NUMBERS, st.binary(min_size=8, max_size=8), NUMBERS)
ENTRIES = st.builds(
    Entry,
    version=VERSIONS,
    history=st.lists(VERSIONS, max_size=MAX_HISTORY).map(tuple),
    closed=st.booleans(),
    expires_in_ms=st.integers(1, 2**40),
    payload=st.binary(max_size=100),
).flatmap(lambda one: st.sampled_from([one, msgspec.structs.replace(one, closed=True, provisional=True)]))


def entry(epoch: int, owner: bytes = A, seq: int = 0, closed: bool = False, lapsed: bool = False) -> Entry:
    return Entry(Version(epoch, owner, seq), (), closed or lapsed, 1000, b"payload", lapsed)


# -- the codec -----------------------------------------------------------------------------------


@given(ENTRIES)
def test_round_trip(one: Entry) -> None:
    assert decode_entry(one.encode(), one.expires_in_ms) == one


@given(ENTRIES)
def test_the_header_has_the_stated_size_whichever_way_it_was_packed(one: Entry) -> None:
    assert len(one.header()) == 19 + 16 * len(one.history) == HEAD_BYTES + PACKED_BYTES * len(one.history)
    assert one.encode() == one.header() + one.payload
    assert encode_header(one.version, one.history, one.closed, one.provisional) == one.header()


@given(st.binary(max_size=400))
def test_any_bytes_are_corrupt_or_an_entry(raw: bytes) -> None:
    try:
        found = decode_entry(raw, 5)
    except CorruptEntry as corrupt:
        assert str(corrupt)
    else:
        assert found.encode() == raw


@given(ENTRIES, st.integers(0, HEAD_BYTES * 8 - 1))
def test_a_bent_header_is_corrupt_or_another_entry_never_the_same(one: Entry, bit: int) -> None:
    raw = bytearray(one.encode())
    raw[bit // 8] ^= 1 << bit % 8
    try:
        found = decode_entry(bytes(raw), one.expires_in_ms)
    except CorruptEntry:
        return
    assert found != one
    assert found.header() != one.header(), "the seal of the payload is bound to the header, so this one will not open"


GOOD = Entry(Version(1, A, 1), (Version(1, A, 1),), False, 1000, b"payload")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes"),
        (GOOD.encode()[: HEAD_BYTES - 1], "18 bytes"),
        (GOOD.encode()[: HEAD_BYTES + 3], "not an entry"),
        (b"\x02" + GOOD.encode()[1:], "not an entry"),
        (GOOD.encode()[:1] + b"\x02" + GOOD.encode()[2:], "not an entry"),
        (GOOD.encode()[:1] + b"\x05" + GOOD.encode()[2:], "not an entry"),
        (GOOD.encode()[: HEAD_BYTES - 1] + bytes([MAX_HISTORY + 1]) + bytes(1000), "not an entry"),
        (GOOD.header() + bytes(MAX_ENTRY_BYTES), "bytes"),
    ],
    ids=[
        "empty",
        "head cut",
        "history cut",
        "other format",
        "provisional but alive",
        "unknown flag",
        "long history",
        "too large",
    ],
)
def test_malformed_bytes_get_a_clear_error(raw: bytes, message: str) -> None:
    with pytest.raises(CorruptEntry, match=message):
        decode_entry(raw, 1000)


def test_the_largest_entry_is_accepted() -> None:
    size = MAX_ENTRY_BYTES - HEAD_BYTES
    assert len(decode_entry(Entry(Version(1, A, 0), (), False, 1, bytes(size)).encode(), 1).payload) == size


# -- the put rule --------------------------------------------------------------------------------

CASES = [
    # stored, seen here, new, accepted, why
    (None, None, entry(1), True, "nothing stored, nothing seen"),
    (None, Version(1, A, 0), entry(2), False, "what was seen here is gone: the server restarted empty"),
    (None, Version(1, A, 0), entry(2, closed=True), True, "a close is taken all the same"),
    (entry(1, A, 1), Version(1, A, 1), entry(2, B), True, "a claim of what was seen"),
    (entry(1, A, 2), Version(1, A, 1), entry(2, B), False, "a claim after a write that it has not seen"),
    (entry(1, A, 1), None, entry(2, B), False, "a claim that saw nothing"),
    (entry(2, B), Version(1, A, 1), entry(2, B), True, "the repeat of a retry"),
    (entry(2, B), Version(1, A, 1), entry(2, A), False, "the second of two rival claims"),
    (entry(1, A, 1), None, entry(1, A, 2), True, "the owner's next write, its answer before was lost"),
    (entry(1, A, 1), None, entry(1, A, 9), True, "the owner's later write"),
    (entry(1, A, 2), None, entry(1, A, 1), False, "an old write that comes late"),
    (entry(2, B), None, entry(1, A, 9), False, "a write of an owner that was superseded"),
    (entry(1, A, 9), Version(1, A, 9), entry(1, B, 1), True, "what was seen decides, not which number is larger"),
    (entry(1, A, 1), None, entry(9, B, closed=True), True, "a close of something alive"),
    (entry(9, A, 9), None, entry(1, B, closed=True), True, "even with a smaller number"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B), False, "nothing overwrites a tombstone"),
    (entry(1, A, closed=True), None, entry(1, A, 1), False, "nor does its own owner"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B, closed=True), False, "nor another tombstone"),
    (entry(1, A, closed=True), None, entry(1, A, closed=True), True, "but it may be repeated"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(1, A), False, "and is not brought back to life"),
    (entry(1, A), None, entry(1, A, closed=True), True, "a close with the number of a claim is no repeat of it"),
    (entry(1, A, 1), Version(1, A, 1), entry(2, B, lapsed=True), True, "a time-out of what was seen"),
    (entry(1, A, 2), Version(1, A, 1), entry(2, B, lapsed=True), False, "a time-out after a write unseen"),
    (None, Version(1, A, 1), entry(2, B, lapsed=True), False, "nobody willed it: no exception for a restart"),
    (entry(2, B, lapsed=True), Version(2, B, 0), entry(3, A), True, "a claim by who saw the time-out"),
    (entry(2, B, lapsed=True), Version(1, A, 1), entry(1, A, 2), False, "a write by who did not"),
    (entry(2, B, lapsed=True), None, entry(1, A, closed=True), True, "a willed close over a time-out"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B, lapsed=True), False, "never the reverse"),
]


@pytest.mark.parametrize(
    ("stored", "seen", "new", "accepted"), [row[:4] for row in CASES], ids=[row[4] for row in CASES]
)
def test_which_puts_are_accepted(stored: Entry | None, seen: Version | None, new: Entry, accepted: bool) -> None:
    assert accepts(stored, seen, new) is accepted


SMALL = [
    entry(epoch, owner, seq, closed)
    for epoch in (1, 2)
    for owner in (A, B)
    for seq in (0, 1, 2)
    for closed in (False, True)
]
SEEN = [None, *{one.version for one in SMALL}]


def as_the_protocol_says(stored: Entry | None, seen: Version | None, new: Entry) -> bool:
    """Section 3, word by word: a tombstone never overwritten; four ways to be accepted."""
    if stored is None:
        return seen is None or new.closed
    repeat = (stored.version, stored.closed) == (new.version, new.closed)
    if stored.closed:
        return repeat
    earlier = stored.version[:2] == new.version[:2] and stored.version.seq < new.version.seq
    return repeat or stored.version == seen or earlier or new.closed


def test_all_puts_of_a_small_world_are_judged_as_the_protocol_says() -> None:
    judged = 0
    for stored, seen, new in itertools.product([None, *SMALL], SEEN, SMALL):
        assert accepts(stored, seen, new) is as_the_protocol_says(stored, seen, new), (stored, seen, new)
        judged += 1
    assert judged == 25 * 13 * 24


def test_what_was_accepted_is_accepted_again_whatever_the_writer_saw() -> None:
    """A retry may find its own put: the outcome of the first try was unknown."""
    for seen, new in itertools.product(SEEN, SMALL):
        assert accepts(new, seen, new)


def test_a_tombstone_stays_whatever_comes_in_whatever_order() -> None:
    for first, second in itertools.product(SMALL, repeat=2):
        stored = entry(1, A, 1, closed=True)
        for new in (first, second):
            for seen in SEEN:
                if accepts(stored, seen, new):
                    stored = new
        assert stored == entry(1, A, 1, closed=True)
