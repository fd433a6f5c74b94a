"""What a session keeps of its durable WebSockets: who may change it, what is kept, and until when."""

from __future__ import annotations

import os

import msgspec
import pytest

from coatcheck.errors import ConflictError, SessionDataError, TokenRejected
from coatcheck.sessions.durable import (
    MAX_ANSWER_BYTES,
    MAX_SOCKETS,
    SentMessage,
    SocketChange,
    SocketState,
    SocketTicket,
    TicketCodec,
)
from coatcheck.sessions.record import MAX_DATA_BYTES, Record, check_room, decode_record, encode_record
from coatcheck.tokens.chain import Chain, ChainLink
from coatcheck.tokens.keyring import KeyRing

NEW = SocketState(1, 0, 0, (), None, 1000)
ONE, TWO, THREE = (SentMessage(True, text) for text in (b"one", b"two", b"three"))
TICKET = SocketTicket(b"k" * 16, b"socket-1", b"v" * 16, 7, True)


def test_answers_are_kept_until_the_director_has_them() -> None:
    state = NEW.after(1, (ONE, TWO), 0, None, 2000)
    assert state == SocketState(1, 1, 0, (ONE, TWO), None, 2000)
    state = state.after(2, (THREE,), 1, None, 3000)
    assert state == SocketState(1, 2, 1, (TWO, THREE), None, 3000)
    state = state.after(3, (), 3, None, 4000)
    assert state == SocketState(1, 3, 3, (), None, 4000)
    assert state.after(4, (ONE,), 3, None, 5000).sent == 3
    assert state.after(4, (), 99, None, 5000).sent == 3, "nobody can have what was not sent"


def test_what_it_ends_with_is_kept() -> None:
    state = NEW.after(1, (ONE,), 0, (4000, "done"), 2000)
    assert state.close == (4000, "done")
    assert state.taken(2500).close == (4000, "done")


def test_too_many_answers_are_refused() -> None:
    half = SentMessage(False, bytes(MAX_ANSWER_BYTES // 2))
    full = NEW.after(1, (half, half), 0, None, 2000)
    with pytest.raises(SessionDataError, match="keeps its answers until they have left"):
        full.after(2, (ONE,), 0, None, 3000)
    assert full.after(2, (ONE,), 1, None, 3000).answers == (half, ONE)


def test_only_who_has_it_may_change_it() -> None:
    stored = SocketChange(b"s", None, NEW).applied(None)
    assert stored == {b"s": NEW}
    done = NEW.after(1, (), 0, None, 2000)
    taken = NEW.taken(1500)
    assert SocketChange(b"s", NEW, done).applied(stored) == {b"s": done}
    with pytest.raises(ConflictError, match="another web server has this WebSocket"):
        SocketChange(b"s", NEW, done).applied({b"s": taken})
    with pytest.raises(ConflictError, match="or it is forgotten"):
        SocketChange(b"s", NEW, done).applied(None)
    with pytest.raises(ConflictError):
        SocketChange(b"s", None, NEW).applied({b"s": taken})


def test_a_change_that_is_there_already_is_none() -> None:
    stored = {b"s": NEW}
    assert SocketChange(b"s", None, NEW).applied(stored) is stored
    assert SocketChange(b"s", NEW, None).applied(None) is None
    assert SocketChange(b"s", NEW, None).applied(stored) is None


def test_others_are_left_alone_and_the_most_silent_is_forgotten() -> None:
    many = {b"%d" % n: msgspec.structs.replace(NEW, at=10_000 - n) for n in range(MAX_SOCKETS)}
    stored = SocketChange(b"new", None, NEW).applied(many)
    assert stored is not None
    assert len(stored) == MAX_SOCKETS
    assert b"new" not in stored, "it was silent for longest: at 1000"
    late = msgspec.structs.replace(NEW, at=20_000)
    stored = SocketChange(b"new", None, late).applied(many)
    assert stored is not None
    assert stored.keys() == (many.keys() - {b"%d" % (MAX_SOCKETS - 1)}) | {b"new"}


def test_a_session_without_room_for_the_answers_says_so() -> None:
    sockets = {b"%d" % n: NEW.after(1, (SentMessage(False, bytes(250_000)),), 0, None, 1) for n in range(3)}
    check_room(bytes(1000), sockets)
    with pytest.raises(SessionDataError, match="durable WebSockets have"):
        check_room(bytes(MAX_DATA_BYTES - 700_000), sockets)


def test_a_record_keeps_them_and_one_of_an_older_coatcheck_has_none() -> None:
    record = Record(b"\x80", 1, 2, None, Chain(ChainLink(b"i" * 16, 1)), {b"s": NEW.after(1, (ONE,), 0, None, 9)})
    assert decode_record(encode_record(record)) == record
    old = msgspec.msgpack.encode([b"\x80", 1, 2, None, [[b"i" * 16, 1], None, [], 0]])
    assert decode_record(old).sockets is None


def test_a_ticket_is_read_by_who_has_the_key_alone() -> None:
    ring = KeyRing([os.urandom(32)])
    codec = TicketCodec(ring, "farm", os.urandom)
    sealed = codec.seal(TICKET)
    assert codec.open(sealed) == TICKET
    assert TICKET.key not in sealed
    assert str(TICKET) == "<SocketTicket>"
    for other in (
        TicketCodec(ring, "another farm", os.urandom),
        TicketCodec(KeyRing([os.urandom(32)]), "farm", os.urandom),
    ):
        with pytest.raises(TokenRejected):
            other.open(sealed)
    for bad in (b"", b"?", sealed[:-4], sealed[:40] + b"A" + sealed[41:], sealed + b"AAAA", b"A" * 100):
        if bad == sealed:
            continue
        with pytest.raises(TokenRejected):
            codec.open(bad)


def test_a_token_is_no_ticket() -> None:
    ring = KeyRing([os.urandom(32)])
    forged = ring.box("token/login", "farm", os.urandom).seal(bytes(42))
    import base64

    with pytest.raises(TokenRejected):
        TicketCodec(ring, "farm", os.urandom).open(base64.urlsafe_b64encode(forged))
