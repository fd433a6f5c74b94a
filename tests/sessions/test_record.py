"""A session as it is stored; what cannot be stored is refused clearly; when it has expired (mission A7)."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.device.binding import Binding
from coatcheck.device.keys import DeviceKey
from coatcheck.errors import CorruptEntry, SessionDataError
from coatcheck.replication.entry import MAX_ENTRY_BYTES
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import (
    EMPTY_DATA,
    MAX_DATA_BYTES,
    Record,
    binding_to,
    decode_data,
    decode_record,
    encode_data,
    encode_record,
    ending,
)
from coatcheck.sessions.values import MAX_DEPTH
from coatcheck.tokens.chain import Chain, ChainLink, Retired

TIMES = st.integers(0, 2**45)
LINKS = st.builds(ChainLink, st.binary(min_size=16, max_size=16), TIMES)
CHAINS = st.builds(
    Chain,
    LINKS,
    st.none() | LINKS,
    st.lists(st.builds(Retired, LINKS, TIMES, st.none() | TIMES), max_size=4).map(tuple),
    TIMES,
)
RECORDS = st.builds(Record, st.binary(max_size=50), TIMES, TIMES, st.none() | st.text(max_size=9), CHAINS)
DATA = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)


@given(RECORDS)
def test_a_record_round_trips(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


class OfTheReleaseBefore(Record, frozen=True, array_like=True):
    """As it reads nine fields or more."""

    ends_at: int | None = None


BINDINGS = st.builds(
    Binding,
    st.builds(DeviceKey, st.sampled_from(("ES256", "RS256")), st.binary(max_size=64)),
    TIMES,
    TIMES,
    st.integers(0, 2**32 - 1),
    st.binary(max_size=16),
)


@given(RECORDS, BINDINGS, st.none() | TIMES)
def test_a_bound_record_round_trips_and_the_release_before_reads_it(
    record: Record, binding: Binding, ends_at: int | None
) -> None:
    bound = binding_to(record if ends_at is None else ending(record, ends_at), binding)
    raw = encode_record(bound)
    assert decode_record(raw) == bound
    assert (bound.bound, bound.deadline) == (binding, ends_at)
    old = msgspec.msgpack.decode(raw, type=OfTheReleaseBefore)
    assert (old.data, old.user, old.chain, old.ends_at) == (record.data, record.user, record.chain, ends_at)
    assert msgspec.msgpack.decode(raw, type=Record) == record
    later = decode_record(b"\x9b" + raw[1:] + b"\xc0")
    assert later == bound


@given(st.binary(max_size=80))
def test_any_bytes_are_corrupt_or_a_record(raw: bytes) -> None:
    try:
        assert isinstance(decode_record(raw), Record)
    except CorruptEntry as corrupt:
        assert "not a session record" in str(corrupt)


RECORD = encode_record(Record(b"", 1, 2, None, Chain(ChainLink(b"i", 3))))


@pytest.mark.parametrize("raw", [b"", b"\x90", b"\x80", b"\xff" * 40, RECORD[:-1], RECORD + b"\x00"])
def test_a_record_that_is_none_is_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptEntry, match="not a session record"):
        decode_record(raw)


@given(DATA)
def test_data_comes_back_as_it_was(data: dict[str, Any]) -> None:
    assert repr(decode_data(encode_data(data))) == repr(data)


def test_empty_data_is_one_byte() -> None:
    assert encode_data({}) == EMPTY_DATA
    assert decode_data(EMPTY_DATA) == {}


def recursive() -> dict[str, Any]:
    data: dict[str, Any] = {"fine": 1}
    data["loop"] = data
    return data


@pytest.mark.parametrize(
    ("data", "culprit"),
    [
        ({"fine": 1, "bad": object()}, "value of 'bad'"),
        ({"bad": {"deep": [1, {2, object()}]}}, "value of 'bad'"),
        ({"bad": 2**64}, "value of 'bad'"),
        ({"bad": 1j}, "value of 'bad'"),
        ({"bad": "\ud800"}, "value of 'bad'"),
        ({"bad": lambda: None}, "value of 'bad'"),
        ({"\ud800": 1}, "a key"),
        (recursive(), "value of 'loop'"),
        ({"x" * 10_000: object()}, "value of 'xxx"),
    ],
)
def test_what_cannot_be_stored_is_named(data: dict[str, Any], culprit: str) -> None:
    with pytest.raises(SessionDataError, match="cannot be stored") as caught:
        encode_data(data)
    assert culprit in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_session_may_be_large_but_not_larger_than_an_entry_with_its_header() -> None:
    room = MAX_DATA_BYTES - len(encode_data({"k": b""})) - 3  # a longer length takes 5 bytes instead of 2
    largest = encode_data({"k": bytes(room)})
    assert len(largest) == MAX_DATA_BYTES < MAX_ENTRY_BYTES
    with pytest.raises(SessionDataError, match=f"{MAX_DATA_BYTES + 1} bytes; at most {MAX_DATA_BYTES}"):
        encode_data({"k": bytes(room + 1)})


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("key", "refused"),
    [("a", False), ("", False), (Name("a"), False), (1, True), (None, True), (b"a", True), ((1, 2), True)],
)
def test_keys_are_strings(key: Any, refused: bool) -> None:
    if refused:
        with pytest.raises(SessionDataError, match=f"must be strings, not {type(key).__name__}"):
            encode_data({"fine": 1, key: 2})
    else:
        assert decode_data(encode_data({key: 2})) == {str(key): 2}


NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


SAFE = [NOON, {1: "one", None: "none"}, {(1, 2): 3}, float("inf"), b"bytes", [1.5, {}]]


class Unregistered(enum.Enum):
    ONE = 1


UNSAFE = [Unregistered.ONE, {uuid.UUID(int=7): 1}, {NOON.date(): 1}, NOON.timetz().replace(tzinfo=ZoneInfo("Etc/UTC"))]


@pytest.mark.parametrize("value", SAFE, ids=lambda value: type(value).__name__)
def test_what_comes_back_as_it_was(value: Any) -> None:
    data = {"k": [value]}
    assert decode_data(encode_data(data)) == data


@pytest.mark.parametrize("value", UNSAFE, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, {"deep": (v,)}]], ids=["plain", "deep"])
def test_what_would_come_back_as_another_type_is_named(value: Any, wrap: Callable[[Any], Any]) -> None:
    data = {"fine": 1, "bad": wrap(value)}
    with pytest.raises(SessionDataError, match=r"value of 'bad'.*: .*(would come back as another|needs a date)"):
        encode_data(data)


def test_tuples_come_back_as_tuples_and_nan_as_nan() -> None:
    data = {"pair": (1, (2,)), "nan": float("nan")}
    found = decode_data(encode_data(data))
    assert found["pair"] == (1, (2,))
    assert math.isnan(found["nan"])


@pytest.mark.parametrize(("depth", "refused"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)])
def test_how_deep_values_may_be_nested(depth: int, refused: bool) -> None:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    data = {"k": value}
    if refused:
        with pytest.raises(SessionDataError, match="nested"):
            encode_data(data)
    else:
        assert decode_data(encode_data(data)) == data


# -- expiry --------------------------------------------------------------------------------------

POLICY = SessionPolicy(idle_timeout_ms=8_000, absolute_timeout_ms=100_000, leeway_ms=500)


@pytest.mark.parametrize(
    ("created_at", "last_seen_at", "expires_at"),
    [
        (0, 0, 9_500),  # idle + one touch (an eighth) + leeway
        (0, 50_000, 59_500),
        (0, 90_000, 99_500),
        (0, 91_000, 100_000),  # the absolute timeout has no leeway
        (0, 99_999, 100_000),  # and activity does not put it off
        (50_000, 91_000, 100_500),
    ],
)
def test_when_a_session_expires(created_at: int, last_seen_at: int, expires_at: int) -> None:
    record = Record(EMPTY_DATA, created_at, last_seen_at, None, Chain(ChainLink(b"i", 0)))
    assert record.expires_at(POLICY) == expires_at


@given(RECORDS)
def test_rotation_and_data_do_not_extend_a_session(record: Record) -> None:
    other = Record(b"other", record.created_at, record.last_seen_at, "user", Chain(ChainLink(b"i", 2**45)))
    assert other.expires_at(POLICY) == record.expires_at(POLICY) <= record.created_at + POLICY.absolute_timeout_ms
