"""The record layer: known answers of RFC 8448, and every suite against OpenSSL, both ways and over KeyUpdates."""

from __future__ import annotations

import json
import random
import ssl
from pathlib import Path
from typing import Any

import pytest

from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.tls_records import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    HEADER_BYTES,
    MAX_CIPHERTEXT_BYTES,
    MAX_PLAINTEXT_BYTES,
)
from coatcheck.takeover.rules.traffic_keys import (
    MAX_GENERATIONS,
    MAX_RECORDS_PER_KEY,
    SUITES,
    Alert,
    Epoch,
    RecordReader,
    RecordWriter,
    Suite,
    TlsViolation,
    expand_label,
)

from .peers import MemoryClient, ServerContext, connect, records

KNOWN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "known_answers.json").read_text())
TRACE: dict[str, Any] = KNOWN["tls_traffic"]["rfc_8448"]
UPDATES: list[dict[str, Any]] = KNOWN["tls_traffic"]["generations"]
SIZES = [0, 1, MAX_PLAINTEXT_BYTES - 1, MAX_PLAINTEXT_BYTES, MAX_PLAINTEXT_BYTES + 1, 1 << 20]
GCM = SUITES["TLS_AES_128_GCM_SHA256"]


@pytest.fixture(scope="module", params=sorted(SUITES))
def context(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> ServerContext:
    return ServerContext(certificate, request.param)


def begun(context: ServerContext) -> tuple[MemoryClient, EstablishedTls]:
    client = MemoryClient()
    return client, connect(context, client)


def drawn(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# Known answers


@pytest.mark.parametrize("side", ["client", "server"])
def test_the_example_of_rfc_8448_is_derived_opened_and_made(side: str) -> None:
    known = TRACE[side]
    secret = bytes.fromhex(known["secret"])
    assert expand_label(GCM, secret, b"key", 16).hex() == known["key"]
    assert expand_label(GCM, secret, b"iv", 12).hex() == known["iv"]
    for each in known["records"]:
        epoch, position = Epoch(5, 0, secret), 5 + each["number"]
        record = bytes.fromhex(each["record"])
        assert RecordReader(GCM, epoch, position).open(record) == (each["type"], bytes.fromhex(each["content"]))
        assert RecordWriter(GCM, epoch, position).seal(each["type"], bytes.fromhex(each["content"])) == record


@pytest.mark.parametrize("known", UPDATES, ids=lambda known: known["suite"])
def test_the_key_behind_each_key_update_is_the_known_one(known: dict[str, Any]) -> None:
    suite = SUITES[known["suite"]]
    epoch = Epoch(0, 0, bytes.fromhex(known["secrets"][0]))
    for number, (secret, record) in enumerate(zip(known["secrets"], known["records"], strict=True)):
        assert epoch.secret.hex() == secret and epoch.generation == number
        assert RecordWriter(suite, epoch, epoch.first).seal(APPLICATION_DATA, b"known").hex() == record
        epoch = epoch.successor(suite, 7 * number)


# OpenSSL at the other end


@pytest.mark.parametrize("size", SIZES)
def test_what_openssl_seals_is_opened_and_what_is_sealed_it_opens(context: ServerContext, size: int) -> None:
    client, server = begun(context)
    sent = drawn(size)
    for _ in range(3):
        got = b"".join(server.open(record)[0] for record in records(client.write(sent)))
        assert got == sent
        sealed = server.seal(sent)
        assert len(sealed) == max(1, -(-size // MAX_PLAINTEXT_BYTES))
        assert client.take(b"".join(sealed)) == sent


@pytest.mark.parametrize("requested", [False, True])
def test_key_updates_of_the_client(context: ServerContext, requested: bool) -> None:
    client, server = begun(context)
    for number in range(5):
        (update,) = records(client.update_key(requested=requested))
        data, reply = server.open(update)
        assert data == b"" and server.must_checkpoint and bool(reply) is requested
        server.state(b"", b"", server.read)
        if reply:
            assert client.take(reply) == b""
        assert b"".join(server.open(each)[0] for each in records(client.write(b"up %d" % number))) == b"up %d" % number
        assert client.take(b"".join(server.seal(b"down %d" % number))) == b"down %d" % number


def test_key_updates_of_ours(context: ServerContext) -> None:
    client, server = begun(context)
    for number in range(40):
        assert client.take(server.update_key()) == b"" and server.must_checkpoint
        assert client.take(b"".join(server.seal(b"down %d" % number))) == b"down %d" % number
        assert server.open(client.write(b"up"))[0] == b"up"


def test_padding_is_taken_off_and_padded_records_are_opened_by_openssl(context: ServerContext) -> None:
    client, server = begun(context)
    sealer = server._sealer
    for padding in (1, 255, MAX_PLAINTEXT_BYTES - 5):
        # A content type and zeros behind the content are padding and the type in front of it.
        content = b"data!" + bytes([APPLICATION_DATA]) + bytes(padding)
        record = padded(sealer, content)
        assert client.take(record) == b"data!"
        opened = RecordReader(sealer.suite, sealer.epoch, sealer.position - 1).open(record)
        assert opened == (APPLICATION_DATA, b"data!")


def padded(sealer: RecordWriter, inner: bytes) -> bytes:
    """A record whose inner text, type and padding included, is this one."""
    size = len(inner) + 16
    header = bytes((APPLICATION_DATA, 3, 3, size >> 8, size & 0xFF))
    record = header + sealer._aead.encrypt(sealer._nonce(), inner, header)
    sealer.position += 1
    return record


# What is refused


def pair(suite: Suite = GCM) -> tuple[RecordWriter, RecordReader]:
    epoch = Epoch(0, 0, bytes(suite.secret_bytes))
    return RecordWriter(suite, epoch, 0), RecordReader(suite, epoch, 0)


def refused(opener: RecordReader, record: bytes) -> Alert:
    before = opener.position
    with pytest.raises(TlsViolation) as caught:
        opener.open(record)
    assert opener.position == before, "a record that was refused counts as not read"
    return caught.value.alert


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_a_record_opens_in_its_place_only_and_no_bit_of_it_may_change(suite: Suite) -> None:
    sealer, opener = pair(suite)
    first, second = sealer.seal(APPLICATION_DATA, b"first"), sealer.seal(APPLICATION_DATA, b"second")
    assert refused(opener, second) is Alert.BAD_RECORD_MAC
    for bit in range(8 * len(first)):
        changed = bytearray(first)
        changed[bit // 8] ^= 1 << bit % 8
        alert = refused(opener, bytes(changed))
        assert alert is (Alert.UNEXPECTED_MESSAGE if bit < 8 else Alert.BAD_RECORD_MAC)
    assert opener.open(first)[1] == b"first"
    assert refused(opener, first) is Alert.BAD_RECORD_MAC, "the same once more"
    assert opener.open(second)[1] == b"second"


@pytest.mark.parametrize("kind", [0, 20, 21, 22, 24, 255])
def test_what_is_not_encrypted_is_refused(kind: int) -> None:
    _, opener = pair()
    assert refused(opener, bytes((kind, 3, 3, 0, 1, 1))) is Alert.UNEXPECTED_MESSAGE


def test_records_that_are_too_short_too_long_or_all_padding_are_refused() -> None:
    sealer, opener = pair()
    for size in range(17):
        assert refused(opener, bytes((APPLICATION_DATA, 3, 3, 0, size)) + bytes(size)) is Alert.BAD_RECORD_MAC
    at_most = RecordWriter(GCM, sealer.epoch, 0).seal(APPLICATION_DATA, bytes(MAX_PLAINTEXT_BYTES))
    assert opener.open(at_most) == (APPLICATION_DATA, bytes(MAX_PLAINTEXT_BYTES))
    sealer.position = 1
    for too_long in (bytes(MAX_PLAINTEXT_BYTES) + b"x\x17", b"x\x17" + bytes(MAX_PLAINTEXT_BYTES)):
        sealer.position = 1
        assert refused(opener, padded(sealer, too_long)) is Alert.RECORD_OVERFLOW
    for size in (0, 1, MAX_PLAINTEXT_BYTES + 1):
        sealer.position = 1
        assert refused(opener, padded(sealer, bytes(size))) is Alert.UNEXPECTED_MESSAGE
    with pytest.raises(ValueError, match="too many"):
        sealer.seal(APPLICATION_DATA, bytes(MAX_PLAINTEXT_BYTES + 1))
    assert len(at_most) <= HEADER_BYTES + MAX_CIPHERTEXT_BYTES


# Limits


def planted(suite: str, generation: int, position: int) -> EstablishedTls:
    epoch = Epoch(0, generation, bytes(SUITES[suite].secret_bytes))
    return EstablishedTls(SUITES[suite], (epoch,), (epoch,), position, position)


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_a_key_that_has_sealed_enough_is_changed(suite: str) -> None:
    server = planted(suite, 0, MAX_RECORDS_PER_KEY - 1)
    assert not server.needs_key_update
    server.seal(b"the last one")
    assert server.needs_key_update
    server.update_key()
    assert not server.needs_key_update
    assert MAX_RECORDS_PER_KEY < 2**24.5, "RFC 8446 section 5.5"


def test_counts_beyond_32_bits_are_right() -> None:
    """Neither the position nor the difference that nonces count from is cut."""
    far = (1 << 40) + 5
    epoch = Epoch(3, 0, bytes(32))
    record = RecordWriter(GCM, epoch, far).seal(APPLICATION_DATA, b"far")
    assert RecordReader(GCM, epoch, far).open(record) == (APPLICATION_DATA, b"far")
    assert refused(RecordReader(GCM, epoch, far - (1 << 32)), record) is Alert.BAD_RECORD_MAC


def test_the_last_key_that_a_connection_may_have_is_kept() -> None:
    """Who sends counts; who receives must not (RFC 9846 section 4.7.3)."""
    server = planted(GCM.name, MAX_GENERATIONS - 1, 0)
    server.update_key()
    before = server.sent
    with pytest.raises(TlsViolation):
        server.update_key()
    assert server.sent == before, "nothing was sealed for it"
    client = RecordWriter(GCM, Epoch(0, MAX_GENERATIONS, bytes(32)), 0)
    at_the_end = planted(GCM.name, MAX_GENERATIONS, 0)
    data, reply = at_the_end.open(client.seal(HANDSHAKE, b"\x18\0\0\1\1"))
    assert data == b"" and reply == b"", "what cannot be granted is passed over"


def test_no_key_is_used_before_its_time() -> None:
    with pytest.raises(ValueError, match="still to come"):
        RecordWriter(GCM, Epoch(5, 0, bytes(32)), 4)


def test_secrets_are_not_shown(context: ServerContext) -> None:
    _, server = begun(context)
    state = server.state(b"c" * 16, b"p" * 16, server.read)
    shown = repr(state) + repr(state.client) + repr(server) + str(state.server)
    for epoch in state.client + state.server:
        assert epoch.secret.hex() not in shown and repr(epoch.secret) not in shown


def test_an_alert_of_ours_is_understood(context: ServerContext) -> None:
    client, server = begun(context)
    assert client.take(server.alert(Alert.CLOSE_NOTIFY)) == b"" and client.closed
    client, server = begun(context)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.take(server.alert(Alert.BAD_RECORD_MAC))
    assert ALERT == 21
