"""Records, frames and sealed states: what they are made of, and what any bytes of strangers do to their readers."""

from __future__ import annotations

import os
import random
import ssl
from base64 import urlsafe_b64decode
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import TokenRejected
from coatcheck.takeover.io.handshake import OpenSslTls
from coatcheck.takeover.rules.inner_frames import (
    FROM_DIRECTOR,
    FROM_SERVER,
    Frame,
    Hello,
    commit,
    frame,
    hello,
    read_commit,
    read_hello,
    read_repeatable,
    repeatable,
)
from coatcheck.takeover.rules.live_state import FORMAT, LiveState, LiveStateSealer
from coatcheck.takeover.rules.repeatable import Repeatable
from coatcheck.takeover.rules.tls_records import (
    FIRST_TYPE,
    HEADER_BYTES,
    LAST_TYPE,
    MAX_CIPHERTEXT_BYTES,
    BadRecord,
    RecordSplitter,
)
from coatcheck.takeover.rules.traffic_keys import Alert, Epoch, TlsViolation
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec

from .peers import MemoryClient, ServerContext, records

SUITE = "TLS_AES_128_GCM_SHA256"
STATE = LiveState(FORMAT, b"c" * 16, b"p" * 16, SUITE, (Epoch(3, 0, bytes(32)),), (Epoch(5, 1, bytes(32)),))
SECRET = bytes(range(32))
HELLO = Hello(("192.0.2.1", 40_000), ("192.0.2.2", 443), b"state", 7, 9, 2, 1)


def sealer(secret: bytes = SECRET, farm: str = "farm-1") -> LiveStateSealer:
    return LiveStateSealer(KeyRing([secret]), farm, random.Random(1).randbytes)


# Records


@given(st.lists(st.tuples(st.integers(20, 23), st.binary(max_size=40))), st.randoms(use_true_random=False))
def test_however_bytes_arrive_the_same_records_come_out(pieces: list[tuple[int, bytes]], rng: random.Random) -> None:
    whole = [bytes((kind, 3, 3, 0, len(content))) + content for kind, content in pieces]
    data, splitter, got = b"".join(whole), RecordSplitter(), []
    while data:
        size = rng.randint(1, 30)
        got += splitter.feed(data[:size])
        data = data[size:]
    assert got == whole and splitter.is_empty


@given(
    st.lists(st.binary(max_size=60), max_size=8), st.sampled_from([(FIRST_TYPE, LAST_TYPE), FROM_DIRECTOR, FROM_SERVER])
)
def test_any_bytes_are_cut_held_or_refused(pieces: list[bytes], types: tuple[int, int]) -> None:
    splitter, fed, out = RecordSplitter(*types), b"", b""
    try:
        for piece in pieces:
            fed += piece
            out += b"".join(splitter.feed(piece))
    except BadRecord:
        return
    held = splitter.take_all()
    assert out + held == fed, "nothing is lost, and nothing added"
    assert len(held) < HEADER_BYTES + MAX_CIPHERTEXT_BYTES


@pytest.mark.parametrize("kind", [*range(FIRST_TYPE), *range(LAST_TYPE + 1, 256)])
def test_a_client_cannot_send_a_frame_nor_any_type_that_tls_has_not(kind: int) -> None:
    with pytest.raises(BadRecord, match=f"type {kind}"):
        RecordSplitter().feed(bytes((kind, 3, 3, 0, 0)))


def test_the_size_of_a_record_is_bounded_and_told_by_its_header_alone() -> None:
    splitter = RecordSplitter()
    assert splitter.feed(b"\x17\x03\x03" + MAX_CIPHERTEXT_BYTES.to_bytes(2, "big")) == []
    assert len(splitter.feed(bytes(MAX_CIPHERTEXT_BYTES))[0]) == HEADER_BYTES + MAX_CIPHERTEXT_BYTES
    with pytest.raises(BadRecord, match="16641 bytes"):
        splitter.feed(b"\x17\x03\x03" + (MAX_CIPHERTEXT_BYTES + 1).to_bytes(2, "big"))


# Frames


def test_frames_say_what_was_said() -> None:
    assert read_hello(hello(HELLO)) == HELLO
    assert read_commit(commit(1 << 63, (1 << 32) - 1)) == (1 << 63, (1 << 32) - 1)
    assert read_repeatable(repeatable(5, 6, b"sealed")) == (5, 6, b"sealed")
    assert len({kind.value for kind in Frame}) == len(Frame)
    assert not any(FIRST_TYPE <= kind <= LAST_TYPE for kind in Frame), "no frame is a record"
    with pytest.raises(ValueError, match="16641 bytes"):
        frame(Frame.STATE, bytes(MAX_CIPHERTEXT_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_in_frames_are_survived(data: bytes) -> None:
    for kind in Frame:
        record = frame(kind, data)
        for read in (read_hello, read_commit, read_repeatable):
            try:
                read(record)
            except BadRecord:
                pass


@pytest.mark.parametrize(
    "value",
    [None, 1, [], {}, [["a", 1]], [["a", 1], ["b", 2], "text", 0, 0, 0, 0], [["a", "b"], ["b", 2]], [["a", 1], 2],
     [["a", 1], ["b", 2], b"", 1.5], [["a", 1], ["b", 2], b"", -1], [["a", 1], ["b", 2], b"", 0, 0, 0, -1]],
)  # fmt: skip
def test_a_malformed_hello_is_refused(value: object) -> None:
    with pytest.raises(BadRecord):
        read_hello(frame(Frame.HELLO, msgspec.msgpack.encode(value)))


def test_text_in_a_hello_that_is_no_text_is_refused() -> None:
    encoded = msgspec.msgpack.encode(HELLO).replace(b"192.0.2.1", b"\xff" * 9)
    with pytest.raises(BadRecord):
        read_hello(frame(Frame.HELLO, encoded))


# States


def test_a_state_opens_on_every_server_of_its_farm_and_nowhere_else() -> None:
    sealed = sealer().seal(STATE)
    assert sealer().open(sealed) == STATE
    assert sealer(farm="farm-2").open(sealed) is None
    assert sealer(secret=bytes(32)).open(sealed) is None
    assert SECRET not in sealed and STATE.client[0].secret not in sealed


def test_what_was_sealed_for_another_purpose_is_no_state_and_no_state_is_that() -> None:
    ring = KeyRing([SECRET])
    encoded = msgspec.msgpack.encode(STATE)
    for purpose in ("token/login", "token/anonymous", "entry", "tls-session", "tls-ticket-key", "pool-state"):
        box = ring.box(purpose, "farm-1", random.Random(2).randbytes)
        assert sealer().open(box.seal(encoded, b"")) is None
        with pytest.raises(TokenRejected):
            box.open(sealer().seal(STATE), b"")
    token = TokenCodec(ring, "login", "farm-1", random.Random(3).randbytes).seal(bytes(16), bytes(16), 1, bytes(16))
    assert sealer().open(urlsafe_b64decode(token + b"=" * (-len(token) % 4))) is None


def test_a_state_is_no_word_on_a_response_and_the_other_way_round() -> None:
    what = Repeatable(b'"tag"', 5, (), 40)
    assert sealer().open_repeatable(sealer().seal_repeatable(what)) == what
    assert sealer().open_repeatable(sealer().seal(STATE)) is None
    assert sealer().open(sealer().seal_repeatable(what)) is None


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"format": 0}, {"suite": "TLS_AES_128_CCM_SHA256"}, {"suite": ""}, {"client": ()}, {"server": ()},
     {"client": (Epoch(3, 0, bytes(31)),)}, {"server": (Epoch(5, 1, bytes(48)),)}, {"suite": "TLS_AES_256_GCM_SHA384"}],
    ids=str,
)  # fmt: skip
def test_a_state_of_another_kind_is_not_used(changes: dict[str, object]) -> None:
    assert sealer().open(sealer().seal(msgspec.structs.replace(STATE, **changes))) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_no_state(data: bytes) -> None:
    assert sealer().open(data) is None and sealer().open_repeatable(data) is None
    box = KeyRing([SECRET]).box("tls-connection", "farm-1", random.Random(2).randbytes)
    assert sealer().open(box.seal(data, b"")) is None, "nor if they were sealed rightly"


def test_a_state_changed_in_any_bit_is_no_state() -> None:
    sealed = sealer().seal(STATE)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert sealer().open(bytes(changed)) is None
    for size in range(len(sealed)):
        assert sealer().open(sealed[:size]) is None


# Where secrets come from


@pytest.fixture(scope="module")
def context(certificate: tuple[Path, Path]) -> ServerContext:
    return ServerContext(certificate)


def logged(context: ServerContext) -> bytes:
    return os.pread(context.key_log._descriptor, 1 << 16, 0)


def test_a_handshake_that_fails_leaves_nothing_in_the_log_of_keys(context: ServerContext) -> None:
    client, handshake = MemoryClient(), context.handshake()
    for record in records(client.handshake()):
        said = handshake.feed(record)
    assert said and not logged(context)
    with pytest.raises(ssl.SSLError):
        handshake.feed(b"\x17\x03\x03\0\x30" + bytes(0x30))
    assert not logged(context)
    client.handshake(said)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.take(handshake.last_words())


def test_two_handshakes_at_once_do_not_take_each_others_secrets(context: ServerContext) -> None:
    clients = [MemoryClient() for _ in range(8)]
    handshakes = [context.handshake() for _ in clients]
    answers = [b"".join(h.feed(r) for r in records(c.handshake())) for c, h in zip(clients, handshakes, strict=True)]
    for client, handshake, answer in reversed(list(zip(clients, handshakes, answers, strict=True))):
        said = b"".join(handshake.feed(record) for record in records(client.handshake(answer)))
        assert client.take(said) == b""
    for number, (client, handshake) in enumerate(zip(clients, handshakes, strict=True)):
        assert handshake.done is not None
        assert handshake.done.open(client.write(b"mine %d" % number))[0] == b"mine %d" % number


def test_a_connection_of_tls_1_2_stays_with_openssl(context: ServerContext) -> None:
    client, handshake = MemoryClient(version=ssl.TLSVersion.TLSv1_2), context.handshake()
    said = b""
    while handshake.done is None:
        said = b"".join(handshake.feed(record) for record in records(client.handshake(said)))
    tls = handshake.done
    assert isinstance(tls, OpenSslTls)
    client.handshake(said)
    assert tls.open(client.write(b"up"))[0] == b"up"
    assert client.take(b"".join(tls.seal(b"down" * 10_000))) == b"down" * 10_000
    with pytest.raises(TlsViolation) as caught:
        tls.open(b"\x17\x03\x03\0\x20" + bytes(32))
    assert caught.value.alert is Alert.INTERNAL_ERROR
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.take(tls.alert(caught.value.alert))


def test_a_handshake_may_come_in_pieces(context: ServerContext) -> None:
    """Records of a few bytes each, as a client may cut its ClientHello."""
    client, handshake = MemoryClient(), context.handshake()
    (first,) = records(client.handshake())
    message = first[HEADER_BYTES:]
    said = b""
    for at in range(0, len(message), 50):
        piece = message[at : at + 50]
        said += handshake.feed(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece)
    for record in records(client.handshake(said)):
        handshake.feed(record)
    assert handshake.done is not None
    assert handshake.done.open(client.write(b"whole"))[0] == b"whole"
