"""The reader of request heads by itself: what it remembers must never differ from what it reads."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import BadHead, HeadFault
from coatcheck.director.rules.request_head import (
    RequestFields,
    RequestHead,
    RequestReader,
    _request_names,
    parse_request_fields,
)
from coatcheck.director.rules.request_stream import RequestStream
from coatcheck.director.rules.response_head import ResponseReader, parse_response_head

NAMES = [
    b"Host", b"host", b"HOST", b"Hostile", b"Cookie", b"cookie", b"Connection", b"Content-Length", b"content-length",
    b"Content-Length-X", b"Content_Length", b"Transfer-Encoding", b"transfer-encoding", b"Transfer_Encoding", b"TE",
    b"Tea", b"Expect", b"Upgrade", b"Upgrade-Insecure-Requests", b"Forwarded", b"X-Forwarded-For", b"X-Real-IP",
    b"x-session-user", b"X_Session_User", b"X-Sessions", b"Proxy", b"Proxy-Authorization", b"Keep-Alive", b"Trailer",
    b"HTTP2-Settings", b"Accept", b"X-A", b"", b" ", b"X A", b"X\tA", b"X\x00",
]  # fmt: skip
VALUES = [
    b"a.test", b"5", b"0", b"5, 5", b"+5", b"chunked", b"gzip", b"close", b"keep-alive", b"Keep-Alive", b"upgrade",
    b"close, x-a", b"100-continue", b"websocket", b"a=b; c=d", b"", b" ", b"\t5\t", b"a\x00b", b"\xe4\xff", b"a\x7f",
    b"a:b", b"*/*",
]  # fmt: skip
SEPARATORS = [b":", b": ", b":\t", b" :", b"", b":  "]
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\n\r"]

_DAMAGE = [bytes([byte]) for byte in range(256)] + [b"\r\n", b"\n", b"\r", b" ", b":", b"", b"\r\n "] * 8

lines = st.tuples(st.sampled_from(NAMES), st.sampled_from(SEPARATORS), st.sampled_from(VALUES), st.sampled_from(ENDS))
blocks = st.builds(
    lambda version, host, rest, end: (
        version
        + b"\r\nHost: a.test" * host
        + end
        + b"".join(name + separator + value + end for name, separator, value, end in rest)[:-2]
    ),
    st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 "]),
    st.booleans(),
    st.lists(lines, max_size=6),
    st.sampled_from(ENDS),
)


def _strict(block: bytes) -> object:
    try:
        return parse_request_fields(block, 100, has_authority=False)
    except BadHead as fault:
        return fault.fault


READER = RequestReader(100)
BEFORE: list[RequestHead] = []


@settings(max_examples=1_500, deadline=None)
@given(blocks | st.binary(max_size=80))
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\r\n b")
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\r\nCookie: b")
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\r\ncookie: b")
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\nTransfer-Encoding: chunked")
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\rb")
@example(b"HTTP/1.1\r\nHost: a.test\r\nConnection: cookie\r\nCookie: a")
@example(b"HTTP/1.1\r\nHost: a.test\r\nCookie:a\r\nCookie:")
@example(b"HTTP/1.1\r\nCookie: a")
@example(b"HTTP/1.1\r\nCookie: a\r\nHost: a.test")
def test_what_is_remembered_agrees_with_what_is_read(block: bytes) -> None:
    """One reader for all examples: what it remembers of one must never colour another."""
    strict = _strict(block)
    before = BEFORE.pop() if BEFORE else None
    try:
        head = READER.read(b"GET / " + block, before)
    except BadHead:
        # Of two faults, either may be named.
        assert isinstance(strict, HeadFault)
        return
    assert READER.read(b"GET / " + block, head) == head
    BEFORE.append(head)
    assert isinstance(strict, RequestFields)
    assert head.cookies.strip(b" \t") == strict.cookies.strip(b" \t")
    fields = head.fields
    cookie = b"Cookie: %b\r\n" % head.cookies if head.cookies and not fields.cookies else b""
    # The cookie may come last.
    assert sorted(_lines(fields.lines + cookie)) == sorted(_lines(strict.lines))
    for field in (
        "host",
        "length",
        "has_length",
        "http10",
        "keep_alive",
        "websocket",
        "expects_continue",
        "forwarding",
    ):
        assert getattr(fields, field) == getattr(strict, field), field


@settings(max_examples=500, deadline=None)
@given(
    st.lists(blocks | st.sampled_from([b"", b"\r\n", b"a=b"]), min_size=1, max_size=3),
    st.sampled_from([b"", b"\r\n"]),
)
@example([b"HTTP/1.1\r\nHost: a.test", b"Cookie: a"], b"")
@example([b"HTTP/1.1\r\nHost: a.test\r\nCookie: a\r\n", b"Cookie: b"], b"")
@example([b"HTTP/1.1\r\nHost: a.test\r\n", b"\r\nCookie: a"], b"\r\n")
def test_a_head_that_comes_alone_is_the_head_that_would_be_found(pieces: list[bytes], first: bytes) -> None:
    """What ends like a head may be read without a search for its end: that end is the same."""
    data = first + b"".join(b"GET / " + piece + b"\r\n\r\n" for piece in pieces)
    for came in (data, data.replace(b"\r\n\r\nGET / ", b"\r\n\r\n")):
        assert _cut([came], b"") == _cut([came], b"G") == _cut([came, came], b"")


def _cut(events: list[bytes], more: bytes) -> object:
    """What the last of some events of one client begins with, and what is behind that but for ``more``."""
    stream = RequestStream(READER, 400)
    try:
        for event in events:
            stream.body_done = True
            head = stream.head(event + more)
    except BadHead as fault:
        return fault.fault
    assert head is not None
    return head, stream.rest[: len(stream.rest) - len(more)]


ANSWERS = ResponseReader(100)
_NAMES = (
    b"set-cookie: ", b"Set-Cookie: ", b"SET-COOKIE:", b"set-cookie:", b"content-length: 1", b"Content-Length: ",
    b"x: ", b"connection: ", b"transfer-encoding: chunked", b" ", b"upgrade: ",
)  # fmt: skip
answer_lines = st.builds(
    lambda name, value: b"\r\n" + name + value,
    st.sampled_from(_NAMES),
    st.sampled_from([b"", b"2", b"a=b; Path=/", b"close", b"a\nb", b"a\rb", b"\x00", b"\xff", b"\r\n", b"x-a"]),
)


@settings(max_examples=1_000, deadline=None)
@given(
    st.sampled_from([b"1 200 OK", b"1 200", b"0 200 OK", b"1 103 Early", b"1 101 So", b"1 2000"]),
    st.lists(answer_lines, max_size=5),
)
def test_a_response_that_sets_a_cookie_is_read_as_any_other(status: bytes, lines: list[bytes]) -> None:
    head = b"HTTP/1." + status + b"".join(lines)
    try:
        strict: object = parse_response_head(head, 100)
    except BadHead:
        strict = BadHead
    for _ in range(2):
        try:
            read: object = ANSWERS.read(head)
        except BadHead:
            read = BadHead
        assert read == strict
    assert not any(b"set-cookie" in known.lower() for known in ANSWERS._known)


def _lines(text: bytes) -> list[tuple[bytes, bytes]]:
    pairs = [line.partition(b":") for line in text.split(b"\r\n") if line]
    kept = [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]
    return [pair for pair in kept if pair != (b"cookie", b"")]


def test_what_is_remembered_is_bounded() -> None:
    reader = RequestReader(100)
    for number in range(5_000):
        reader.read(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: %d" % number)
    reader.read(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: " + b"a" * 20_000)
    assert len(reader._known) == 512
    assert sum(len(block) for block in reader._known) < 512 * 100


@settings(max_examples=1_000, deadline=None)
@given(st.binary(max_size=120) | st.builds(lambda b: b"GET / " + b, blocks))
def test_any_bytes_are_read_or_refused(head: bytes) -> None:
    reader = RequestReader(100)
    outcomes: list[object] = []
    for _ in range(2):
        try:
            outcomes.append(reader.read(head))
        except BadHead as fault:
            outcomes.append(fault.fault)
    assert outcomes[0] == outcomes[1]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=30), max_size=5),
    st.lists(st.integers(1, 9), min_size=1),
    st.binary(max_size=9),
)
def test_chunks_however_they_are_cut(payload: list[bytes], cuts: list[int], after: bytes) -> None:
    wire = b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in payload) + b"0\r\nA: b\r\n\r\n"
    reader, got, at, turn = ChunkedReader(), b"", 0, 0
    data = wire + after
    while at < len(data) and not reader.done:
        size = cuts[turn % len(cuts)]
        got += b"".join(reader.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    assert reader.done
    assert got == b"".join(payload)
    assert reader.rest + data[at:] == after


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\r\n", b"5\r\n", b"0\r\n", b"hello", b"5;x"]), max_size=8))
def test_any_bytes_for_chunks(pieces: list[bytes]) -> None:
    whole, cut = ChunkedReader(), ChunkedReader()

    def all_of(reader: ChunkedReader, parts: list[bytes]) -> tuple[bytes, bool]:
        got = b""
        for part in parts:
            if reader.done:
                break
            got += b"".join(reader.feed(part))
        return got, reader.done

    try:
        expected = all_of(whole, [b"".join(pieces)])
    except BadHead:
        # The pieces may end before the fault is certain, but never as a good body.
        try:
            assert not all_of(cut, [bytes([byte]) for byte in b"".join(pieces)])[1]
        except BadHead as fault:
            assert fault.status == 400
        return
    assert all_of(cut, [bytes([byte]) for byte in b"".join(pieces)]) == expected


HEADS = 50_000


def test_damaged_heads() -> None:
    """Each is read or refused, and nothing grows."""
    chance = random.Random(7)
    good = [
        b"GET /a?b=c HTTP/1.1\r\nHost: shop.test\r\nCookie: coatcheck-route=x; s=y\r\nConnection: keep-alive",
        b"POST /b HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\nX-A: 1",
        b"PUT /c HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: 1.1.1.1",
    ]
    reader, read, refused = RequestReader(100), 0, 0
    for _ in range(HEADS):
        head = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 3)):
            at = int(chance.random() * len(head))
            head[at : at + int(chance.random() * 3)] = _DAMAGE[int(chance.random() * len(_DAMAGE))]
        try:
            taken = reader.read(bytes(head))
        except BadHead:
            refused += 1
            continue
        read += 1
        assert b"\n" not in taken.target + taken.fields.host + taken.fields.cookies
        assert not set(taken.fields.lines.replace(b"\r\n", b"")) & set(b"\r\n\x00")
    assert read + refused == HEADS
    assert min(read, refused) > HEADS // 10
    assert len(_request_names) <= 1024


@pytest.mark.parametrize("times", [1, 3])
def test_an_absolute_target_is_not_remembered(times: int) -> None:
    reader = RequestReader(100)
    block = b" HTTP/1.1\r\nHost: a.test"
    for _ in range(times):
        assert reader.read(b"GET http://b.test/x" + block).fields.host == b"b.test"
        assert reader.read(b"GET /x" + block).fields.host == b"a.test"
