"""What a session server stores, as bytes (protocol section 3)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import (
    HEAD_BYTES,
    MAX_ENTRY_BYTES,
    Entry,
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
