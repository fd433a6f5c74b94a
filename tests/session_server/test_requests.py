"""Parsing requests from strangers: any bytes, in any pieces."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coatcheck import resp
from coatcheck.session_server.requests import ProtocolViolation, RequestLimits, RequestParser

LIMITS = RequestLimits(args=8, arg_bytes=600, request_bytes=2000, line_bytes=100)
KEY = bytes(range(16))

WORDS = st.lists(st.binary(max_size=60), min_size=1, max_size=8)
PUTS = st.builds(
    lambda key, seen, life, raw: [b"CC.PUT", key, seen, b"%d" % life, raw],
    st.binary(min_size=16, max_size=16),
    st.just(b"") | st.binary(min_size=16, max_size=16),
    st.integers(0, 10**15),
    st.binary(max_size=600),
)
GETS = st.builds(lambda key: [b"CC.GET", key], st.binary(min_size=16, max_size=16))


def parse(pieces: list[bytes]) -> tuple[list[list[bytes]], str]:
    """All requests, and the violation that ended them."""
    parser = RequestParser(LIMITS)
    requests = []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (request := parser.next()) is not None:
                requests.append(request)
            assert parser.buffered_bytes <= LIMITS.request_bytes + len(piece)
    except ProtocolViolation as violation:
        return requests, str(violation)
    return requests, ""


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    points = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(points)]


@given(requests=st.lists(WORDS | PUTS | GETS, max_size=6), cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_requests_come_out_as_they_went_in_however_they_are_cut(requests: list, cuts: list[int]) -> None:
    data = b"".join(resp.command(*request) for request in requests)
    assert parse(split(data, cuts)) == (requests, "")
    assert parse([data[at : at + 1] for at in range(len(data))]) == (requests, "")


PIECES = [b"*", b"$", b"\r\n", b"\n", b"\r", b"-1", b"0", b"1", b"5", b"16", b"99999999999999999999", b" ", b"+", KEY]
PIECES += [b"CC.PUT", b"CC.GET", b"PING", resp.command(b"CC.GET", KEY), b"*5\r\n$6\r\nCC.PUT\r\n$16\r\n"]
FRAGMENTS = st.lists(
    st.sampled_from(PIECES) | st.binary(max_size=20),
    max_size=30,
).map(b"".join)


@settings(max_examples=1000, deadline=None)
@given(data=st.binary(max_size=300) | FRAGMENTS, cuts=st.lists(st.integers(0, 10_000), max_size=8))
@example(data=b"*2147483647\r\n", cuts=[])
@example(data=b"*1\r\n$-1\r\n", cuts=[])
@example(data=b"*1\r\n$1000000000\r\n", cuts=[])
def test_any_bytes_give_requests_or_a_violation_and_the_cuts_do_not_matter(data: bytes, cuts: list[int]) -> None:
    whole = parse([data])
    assert parse(split(data, cuts))[0] == whole[0]
    assert parse([data[at : at + 1] for at in range(len(data))])[0] == whole[0]


@settings(max_examples=1000, deadline=None)
@given(request=PUTS, at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_flipped_byte_never_raises_anything_else(request: list[bytes], at: int, byte: int) -> None:
    data = bytearray(resp.command(*request) + resp.command(b"PING"))
    data[at % len(data)] = byte
    requests, _ = parse([bytes(data)])
    assert len(requests) <= 60


class TheLongWay(RequestParser):
    """Without the short way for the two requests of the hot path."""

    def _hot(self, at: int) -> list[bytes] | None:
        return None


HOT = PUTS | GETS


@settings(max_examples=1000, deadline=None)
@given(request=HOT, at=st.integers(0, 10_000), length=st.integers(0, 700), follow=st.booleans())
@example(request=[b"CC.PUT", KEY, b"", b"60000", b"entry"], at=3, length=2, follow=True)
@example(request=[b"CC.PUT", KEY, b"", b"60000", b"entry"], at=3, length=16, follow=True)
def test_the_short_way_takes_no_other_length_than_the_long_one(
    request: list[bytes], at: int, length: int, follow: bool
) -> None:
    """One declared length is a lie; what both ways make of it is the same."""
    at %= len(request)
    told = [b"$%d\r\n%b\r\n" % (length if n == at else len(word), word) for n, word in enumerate(request)]
    data = b"*%d\r\n" % len(request) + b"".join(told) + (resp.command(b"PING") if follow else b"")
    outcomes = []
    for parser in (RequestParser(LIMITS), TheLongWay(LIMITS)):
        parser.feed(data)
        found: list[object] = []
        try:
            while (one := parser.next()) is not None:
                found.append(one)
        except ProtocolViolation as violation:
            found.append(str(violation))
        outcomes.append(found)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    "hostile",
    [
        b"*9\r\n",
        b"*99999999999999999999\r\n",
        b"*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*1\r\n$601\r\n",
        b"*-2\r\n",
        b"*+1\r\n",
        b"*1_0\r\n",
        b"* 1\r\n",
        b"*1\r\n$4\r\nPINGxx",
        b"*8\r\n"
        + b"$600\r\n"
        + b"x" * 600
        + b"\r\n$600\r\n"
        + b"x" * 600
        + b"\r\n$600\r\n"
        + b"x" * 600
        + b"\r\n$600\r\n",
        b"*" + b"1" * 20,
        b"word " * 40,
        b"a b c d e f g h i\r\n",
    ],
)
def test_violations(hostile: bytes) -> None:
    requests, violation = parse([hostile])
    assert requests == []
    assert violation


def test_lines_of_words() -> None:
    assert parse([b"PING\r\n\r\n  get  x \n*0\r\nQUIT\n"]) == ([[b"PING"], [b"get", b"x"], [b"QUIT"]], "")


def test_a_large_argument_in_many_pieces_takes_linear_time() -> None:
    limits = RequestLimits(args=8, arg_bytes=2**20, request_bytes=2**20 + 100, line_bytes=100)
    parser = RequestParser(limits)
    data = resp.command(b"X", bytes(2**20))
    began = time.monotonic()
    for at in range(0, len(data), 4):
        parser.feed(data[at : at + 4])
        request = parser.next()
    assert request == [b"X", bytes(2**20)]
    assert time.monotonic() - began < 60
