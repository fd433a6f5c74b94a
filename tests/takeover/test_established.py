"""A connection whose handshake is done: floods, malformed messages, and states with which another server goes on."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.takeover.rules.established import _MAX_IN_A_ROW, MAX_KEPT_KEYS, ClientAlert, EstablishedTls
from coatcheck.takeover.rules.inner_frames import MAX_STATE_BYTES
from coatcheck.takeover.rules.live_state import LiveState, LiveStateSealer
from coatcheck.takeover.rules.tls_records import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE
from coatcheck.takeover.rules.traffic_keys import SUITES, Alert, Epoch, RecordWriter, TlsViolation
from coatcheck.tokens.keyring import KeyRing

from .peers import MemoryClient, ServerContext, connect, records
from .test_traffic_keys import padded

GCM = SUITES["TLS_AES_128_GCM_SHA256"]
SECRET = bytes(range(32))
KEY_UPDATE, KEY_UPDATE_REQUESTED = b"\x18\0\0\1\0", b"\x18\0\0\1\1"
IDS = b"c" * 16, b"p" * 16


@pytest.fixture(scope="module")
def context(certificate: tuple[Path, Path]) -> ServerContext:
    return ServerContext(certificate)


class Script:
    """A client that says whatever a test wants, rightly sealed, and the server that hears it."""

    def __init__(self) -> None:
        epoch = Epoch(0, 0, SECRET)
        self.client = RecordWriter(GCM, epoch, 0)
        self.server = EstablishedTls(GCM, (epoch,), (epoch,), 0, 0)

    def say(self, kind: int, content: bytes) -> tuple[bytes, bytes]:
        record = self.client.seal(kind, content)
        if kind == HANDSHAKE and content[:1] == KEY_UPDATE[:1]:
            self.client.update()
        return self.server.open(record)

    def refused(self, kind: int, content: bytes) -> Alert:
        with pytest.raises(TlsViolation) as caught:
            self.say(kind, content)
        return caught.value.alert


# What a client may not say


@pytest.mark.parametrize(
    ("kind", "content", "alert"),
    [
        (ALERT, b"", Alert.UNEXPECTED_MESSAGE),
        (ALERT, b"\x01", Alert.DECODE_ERROR),
        (ALERT, b"\x01\x00\x00", Alert.DECODE_ERROR),
        (HANDSHAKE, b"", Alert.UNEXPECTED_MESSAGE),
        (HANDSHAKE, b"\x01\0\0\0", Alert.UNEXPECTED_MESSAGE),
        (HANDSHAKE, b"\x14\0\0\x20" + bytes(32), Alert.UNEXPECTED_MESSAGE),
        (HANDSHAKE, b"\x18", Alert.DECODE_ERROR),
        (HANDSHAKE, b"\x18\0\0\1", Alert.DECODE_ERROR),
        (HANDSHAKE, b"\x18\0\0\0", Alert.DECODE_ERROR),
        (HANDSHAKE, b"\x18\0\0\2\0\0", Alert.DECODE_ERROR),
        (HANDSHAKE, KEY_UPDATE + KEY_UPDATE, Alert.UNEXPECTED_MESSAGE),
        (HANDSHAKE, KEY_UPDATE + b"\x01", Alert.UNEXPECTED_MESSAGE),
        (HANDSHAKE, b"\x18\0\0\1\2", Alert.ILLEGAL_PARAMETER),
        (HANDSHAKE, b"\x18\0\0\1\xff", Alert.ILLEGAL_PARAMETER),
        (CHANGE_CIPHER_SPEC, b"\x01", Alert.UNEXPECTED_MESSAGE),
        (24, b"heartbeat", Alert.UNEXPECTED_MESSAGE),
        (255, b"?", Alert.UNEXPECTED_MESSAGE),
    ],
)
def test_what_may_not_be_said_has_the_alert_of_the_rfc(kind: int, content: bytes, alert: Alert) -> None:
    script = Script()
    assert script.refused(kind, content) is alert
    assert not script.server.must_checkpoint and not script.server.closed_by_client


def test_change_cipher_spec_behind_the_handshake() -> None:
    """RFC 8446 section 5: only before the client's Finished."""
    with pytest.raises(TlsViolation) as caught:
        Script().server.open(b"\x14\x03\x03\0\x01\x01")
    assert caught.value.alert is Alert.UNEXPECTED_MESSAGE


def test_records_of_padding_alone_and_too_large_ones() -> None:
    script = Script()
    for inner, alert in ((bytes(100), Alert.UNEXPECTED_MESSAGE), (b"x" * 16_385 + b"\x17", Alert.RECORD_OVERFLOW)):
        script.client.position = 0
        with pytest.raises(TlsViolation) as caught:
            script.server.open(padded(script.client, inner))
        assert caught.value.alert is alert
    assert script.server.read == 0


FLOODS: dict[str, Callable[[], tuple[int, bytes]]] = {
    "empty records": lambda: (APPLICATION_DATA, b""),
    "KeyUpdates": lambda: (HANDSHAKE, KEY_UPDATE),
    "requested KeyUpdates": lambda: (HANDSHAKE, KEY_UPDATE_REQUESTED),
    "cancellations": lambda: (ALERT, bytes((1, Alert.USER_CANCELED))),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_end_and_what_comes_now_and_then_is_no_flood(flood: str) -> None:
    script = Script()
    for _ in range(5):
        for _ in range(_MAX_IN_A_ROW):
            assert script.say(*FLOODS[flood]())[0] == b""
        assert script.say(APPLICATION_DATA, b"data") == (b"data", b"")
    for _ in range(_MAX_IN_A_ROW):
        script.say(*FLOODS[flood]())
    assert script.refused(*FLOODS[flood]()) is Alert.UNEXPECTED_MESSAGE


def test_the_end_of_the_client() -> None:
    script = Script()
    assert script.say(ALERT, bytes((1, Alert.CLOSE_NOTIFY))) == (b"", b"")
    assert script.server.closed_by_client
    assert script.say(APPLICATION_DATA, b"behind the end") == (b"", b""), "RFC 8446 section 6.1: it is ignored"
    assert script.say(HANDSHAKE, KEY_UPDATE_REQUESTED) == (b"", b"")


@pytest.mark.parametrize("number", [10, 20, 40, 42, 48, 49, 80, 112, 120, 255])
def test_whatever_alert_the_client_has_it_is_over(number: int) -> None:
    script = Script()
    with pytest.raises(ClientAlert, match=str(number)):
        script.say(ALERT, bytes((2, number)))


def test_a_request_with_half_of_a_key_update_is_no_request(context: ServerContext) -> None:
    """A real client is told what it did wrong."""
    client = MemoryClient()
    server = connect(context, client)
    with pytest.raises(TlsViolation) as caught:
        server.open(b"\x17\x03\x03\0\x20" + bytes(32))
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        client.take(server.alert(caught.value.alert))


# States


def test_an_unacknowledged_key_change_is_in_the_state_together_with_the_one_before() -> None:
    script = Script()
    first = script.server.state(*IDS, 0).server
    script.server.seal(b"one")
    for _ in range(2):
        script.server.update_key()
    assert [epoch.first for epoch in script.server.state(*IDS, 0).server] == [0, 2, 3], "no key between is missing"
    assert script.server.state(*IDS, 0).server[-1].generation == first[0].generation + 2
    assert not script.server.must_checkpoint


def test_keys_of_the_client_are_forgotten_when_nothing_under_them_is_read_again() -> None:
    script = Script()
    for _ in range(3):
        script.say(APPLICATION_DATA, b"data")
        script.say(HANDSHAKE, KEY_UPDATE)
    firsts = {
        answered: [e.first for e in script.server.state(*IDS, answered).client] for answered in (0, 1, 2, 3, 5, 6)
    }
    assert firsts == {0: [0, 2, 4, 6], 1: [0, 2, 4, 6], 2: [2, 4, 6], 3: [2, 4, 6], 5: [4, 6], 6: [6]}


def test_a_client_that_changes_its_keys_without_end_cannot_make_a_state_too_large() -> None:
    ring = LiveStateSealer(KeyRing([bytes(32)]), "farm", random.Random(1).randbytes)
    for suite in SUITES.values():
        epoch = Epoch((1 << 60), (1 << 40), bytes(suite.secret_bytes))
        client = RecordWriter(suite, epoch, epoch.first)
        server = EstablishedTls(suite, (epoch,), (epoch,), epoch.first, epoch.first)
        for _ in range(MAX_KEPT_KEYS + 10):
            server.open(client.seal(APPLICATION_DATA, b"data"))
            server.open(client.seal(HANDSHAKE, KEY_UPDATE))
            client.update()
            state = server.state(*IDS, epoch.first)
            assert len(ring.seal(state)) <= MAX_STATE_BYTES
        assert len(state.client) == MAX_KEPT_KEYS
        with pytest.raises(ValueError, match="forgotten"):
            EstablishedTls(suite, state.client, state.server, epoch.first, epoch.first)


def test_states_without_keys_for_their_counts_are_refused() -> None:
    epoch, later = Epoch(5, 0, SECRET), Epoch(9, 1, SECRET)
    for client, server, read, sent in [
        ((epoch,), (epoch,), 4, 5), ((epoch,), (epoch,), 5, 4), ((later,), (epoch,), 5, 5), ((), (epoch,), 5, 5),
        ((epoch,), (), 5, 5), ((epoch,), (epoch,), -1, 5),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="forgotten"):
            EstablishedTls(GCM, client, server, read, sent)


class Conversation:
    """A real client, a server, and all that a director between them would have seen."""

    def __init__(self, context: ServerContext, seed: int) -> None:
        self.rng = random.Random(seed)
        self.client = MemoryClient()
        self.server = connect(context, self.client)
        self.began_at = self.server.read
        self.answered = self.server.read
        self.sent = b""
        self.up: list[bytes] = []
        """The client's records since the handshake, and what is in each."""
        self.held: list[bytes] = []
        self.state = self.server.state(*IDS, self.answered)

    def step(self) -> None:
        rng = self.rng
        match rng.randrange(6):
            case 0 | 1:
                data = rng.randbytes(rng.choice([1, 30, 5000, 40_000]))
                self.hear(self.client.write(data), data)
            case 2:
                self.hear(self.client.update_key(requested=rng.random() < 0.5), b"")
            case 3 | 4:
                data = rng.randbytes(rng.choice([0, 1, 30, 5000, 40_000]))
                assert self.client.take(b"".join(self.server.seal(data))) == data
            case _:
                assert self.client.take(self.server.update_key()) == b""
        if rng.random() < 0.3:
            self.answered = self.server.read
        if self.server.must_checkpoint or rng.random() < 0.1:
            self.state = self.server.state(*IDS, self.answered)

    def hear(self, said: bytes, data: bytes) -> None:
        got = b""
        for record in records(said):
            piece, reply = self.server.open(record)
            if self.server.must_checkpoint:
                self.state = self.server.state(*IDS, self.answered)
            if reply:
                assert self.client.take(reply) == b""
            self.up.append(record)
            self.held.append(piece)
            got += piece
        assert got == data

    def successor(self, state: LiveState, read: int, sent: int) -> EstablishedTls:
        return EstablishedTls(state.cipher_suite, state.client, state.server, read, sent)


@pytest.mark.parametrize("seed", range(12))
def test_another_server_goes_on_at_any_record(context: ServerContext, seed: int) -> None:
    talk = Conversation(context, seed)
    for _ in range(25):
        talk.step()
        other = talk.successor(talk.state, talk.answered, talk.server.sent)
        # What is not answered is read again, and is the same.
        behind = talk.answered - talk.began_at
        for record, data in zip(talk.up[behind:], talk.held[behind:], strict=True):
            other.state(*IDS, talk.answered)
            assert other.open(record)[0] == data
        assert other.read == talk.server.read
        wrong_counts(talk, behind)
    # And the last one really goes on.
    taker = talk.successor(talk.state, talk.answered, talk.server.sent)
    said = taker.update_key()
    for record in talk.up[talk.answered - talk.began_at :]:
        # A KeyUpdate that asks for one is answered again: who may know whether the first answer arrived?
        said += taker.open(record)[1]
    talk.server = taker
    talk.state = taker.state(*IDS, talk.answered)
    assert talk.client.take(said + b"".join(taker.seal(b"from another server"))) == b"from another server"
    for _ in range(10):
        talk.step()


def wrong_counts(talk: Conversation, behind: int) -> None:
    """Never wrong data: refused, or not to be opened."""
    if behind == len(talk.up):
        return
    for wrong in (talk.answered - 1, talk.answered + 1, talk.answered + 2, talk.answered + 1000, 0):
        try:
            other = talk.successor(talk.state, wrong, talk.server.sent)
        except ValueError:
            continue
        with pytest.raises(TlsViolation):
            other.open(talk.up[behind])


@pytest.mark.parametrize("seed", range(40))
def test_whichever_prefix_a_director_got_the_newest_state_in_it_goes_on(context: ServerContext, seed: int) -> None:
    """States, commits and records in the order in which a server sends them; the director has any beginning of that."""
    rng = random.Random(f"prefix {seed}")
    client = MemoryClient()
    server = connect(context, client)
    began_at, answered = server.read, server.read
    stream: list[tuple[str, LiveState | int | bytes]] = [("state", server.state(*IDS, answered))]
    up: list[tuple[bytes, bytes]] = []
    sent_at_start = server.sent

    for _ in range(30):
        match rng.randrange(5):
            case 0 | 1:
                said = client.write(rng.randbytes(rng.randint(1, 20_000)))
            case 2:
                said = client.update_key(requested=rng.random() < 0.7)
            case 3:
                stream += [("record", record) for record in server.seal(rng.randbytes(rng.randint(1, 20_000)))]
                continue
            case _:
                answered = server.read
                stream.append(("commit", answered))
                continue
        for record in records(said):
            data, reply = server.open(record)
            up.append((record, data))
            if server.must_checkpoint:
                stream.append(("state", server.state(*IDS, answered)))
            if reply:
                stream.append(("record", reply))

    for length in range(1, len(stream) + 1):
        got = stream[:length]
        state = next(word for kind, word in reversed(got) if kind == "state")
        committed = next((word for kind, word in reversed(got) if kind == "commit"), began_at)
        delivered = sent_at_start + sum(kind == "record" for kind, _ in got)
        assert isinstance(state, LiveState) and isinstance(committed, int)
        taker = EstablishedTls(state.cipher_suite, state.client, state.server, committed, delivered)
        # What it seals next is what the client would open next.
        reference = sealed_at(stream, delivered)
        assert taker._sealer.epoch.secret == reference
        for record, data in up[committed - began_at :]:
            assert taker.open(record)[0] == data


def sealed_at(stream: list[tuple[str, LiveState | int | bytes]], position: int) -> bytes:
    """The secret that the record there was really sealed with, by the states of the whole conversation."""
    epochs = {epoch for _, word in stream if isinstance(word, LiveState) for epoch in word.server}
    return max((epoch for epoch in epochs if epoch.first <= position), key=lambda epoch: epoch.generation).secret


# A server that goes on


def left_behind(*, further: bool) -> LiveState:
    """The state of a server that has sealed three records; with a further key, whose KeyUpdate may never have left."""
    epoch = Epoch(0, 0, SECRET)
    keys = (epoch, epoch.successor(GCM, 4)) if further else (epoch,)
    return LiveState(1, *IDS, GCM.name, (epoch,), keys)


@pytest.mark.parametrize(("further", "updates"), [(False, 1), (True, 2)])
def test_keys_that_the_server_before_had_ready_count_as_used(further: bool, updates: int) -> None:
    for renewals in range(3):
        state = left_behind(further=further)
        for _ in range(renewals):
            # As when the key ring changes: the state is sealed anew, and nothing was sent.
            state = EstablishedTls.taken_over(state, 0, 3).state(*IDS, 0)
        tls = EstablishedTls.taken_over(state, 0, 3)
        assert tls.needs_key_update
        assert len(records(tls.renew_key())) == updates
        assert not tls.needs_key_update
        assert tls.generation == updates


def test_before_that_nothing_else_is_sealed() -> None:
    tls = EstablishedTls.taken_over(left_behind(further=False), 0, 3)
    for seal in (lambda: tls.seal(b"x"), lambda: tls.alert(Alert.CLOSE_NOTIFY)):
        with pytest.raises(RuntimeError):
            seal()
    client = RecordWriter(GCM, Epoch(0, 0, SECRET), 0)
    _, reply = tls.open(client.seal(HANDSHAKE, KEY_UPDATE_REQUESTED))
    assert len(records(reply)) == 1, "that is a KeyUpdate itself"
    assert len(tls.seal(b"x")) == 1
