"""The ClientHello parser: real clients' hellos are read as OpenSSL reads them, and no bytes of strangers hurt it."""

from __future__ import annotations

import random
import ssl
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.tls.client_hello import MAX_HELLO_BYTES, ClientHello, Incomplete, NotAHello, read_client_hello

from .farm import TLS_1_2, TLS_1_3

MUTATIONS = 20_000
"""A slice; a million were run once."""


def hello_of(version: ssl.TLSVersion, host: str = "shop.test") -> bytes:
    """The first bytes of Python's own client."""
    context = ssl.create_default_context()
    context.minimum_version, context.maximum_version = TLS_1_2, version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def vector(content: bytes, length_bytes: int) -> bytes:
    return len(content).to_bytes(length_bytes, "big") + content


def made(session_id: bytes, identities: list[bytes], *, record_bytes: int = 16_384) -> bytes:
    """A hello that offers these, in records of at most so many bytes."""
    offered = vector(b"".join(vector(each, 2) + bytes(4) for each in identities), 2) + vector(vector(bytes(32), 1), 2)
    extensions = extension(0, vector(b"\0" + vector(b"shop.test", 2), 2)) + (
        extension(41, offered) if identities else b""
    )
    body = b"\x03\x03" + bytes(32) + vector(session_id, 1) + vector(b"\x13\x01", 2) + vector(b"\0", 1)
    message = b"\x01" + vector(body + vector(extensions, 2), 3)
    pieces = [message[at : at + record_bytes] for at in range(0, len(message), record_bytes)]
    return b"".join(b"\x16\x03\x01" + vector(piece, 2) for piece in pieces)


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_hello_of_a_real_client_is_read(version: ssl.TLSVersion) -> None:
    reading = read_client_hello(hello_of(version))
    assert isinstance(reading, ClientHello)
    # TLS 1.3 clients send a random session ID for the sake of old middleboxes; a fresh TLS 1.2 client sends none.
    assert [len(offer) for offer in reading.offers] == ([32] if version is TLS_1_3 else [])


def test_offers_are_read_in_the_order_of_the_client() -> None:
    assert read_client_hello(made(b"s" * 32, [b"a" * 32, b"b" * 200])) == ClientHello(
        (b"a" * 32, b"b" * 200, b"s" * 32)
    )
    assert read_client_hello(made(b"", [])) == ClientHello(())


@pytest.mark.parametrize("record_bytes", [1, 2, 3, 7, 100])
def test_a_hello_in_many_records_is_read_as_one(record_bytes: int) -> None:
    whole = made(b"s" * 32, [b"a" * 32])
    assert read_client_hello(made(b"s" * 32, [b"a" * 32], record_bytes=record_bytes)) == read_client_hello(whole)


@pytest.mark.parametrize("data", [hello_of(TLS_1_3), made(b"s" * 32, [b"a" * 32], record_bytes=50)])
def test_every_beginning_of_a_hello_is_incomplete(data: bytes) -> None:
    for size in range(len(data)):
        assert read_client_hello(data[:size]) == Incomplete(), size
    assert isinstance(read_client_hello(data + b"and what comes after it"), ClientHello)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x15\x03\x01\0\2\2\x28", b"\x16\x03\x01\0\0", b"\x16\x03\x01\xff\xff",
     b"\x16\x03\x01\0\4\2\0\0\0", b"\x16\x03\x01\0\4\1\xff\xff\xff", b"\x16\x03\x01\0\5\1\0\0\1\0"],
)  # fmt: skip
def test_what_is_no_hello_is_told_at_once(data: bytes) -> None:
    assert read_client_hello(data) == NotAHello()


def test_endless_tiny_records_end() -> None:
    """64 KiB of records of one byte each are read in one go, and quickly."""
    data = made(b"s" * 32, [b"a" * 1000] * 60, record_bytes=1)
    began = time.process_time()
    read_client_hello(data[:MAX_HELLO_BYTES])
    assert time.process_time() - began < 1.0


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    assert isinstance(read_client_hello(data), ClientHello | NotAHello | Incomplete)
    assert isinstance(read_client_hello(b"\x16\x03\x01" + data), ClientHello | NotAHello | Incomplete)


def test_mutated_hellos_are_survived_and_offer_no_more_than_they_hold() -> None:
    rng = random.Random(8)
    seeds = [hello_of(TLS_1_2), hello_of(TLS_1_3), made(b"s" * 32, [b"a" * 32, b"b" * 32]),
             made(b"s" * 32, [b"a" * 32], record_bytes=30)]  # fmt: skip
    for _ in range(MUTATIONS):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.randint(1, 8)]
                case _:
                    data[at:at] = rng.randbytes(rng.randint(1, 8))
            data = data or bytearray(b"\x16")
        reading = read_client_hello(bytes(data))
        if isinstance(reading, ClientHello):
            assert sum(map(len, reading.offers)) <= len(data)
        else:
            assert isinstance(reading, NotAHello | Incomplete)
