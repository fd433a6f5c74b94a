"""WebSocket frames against the examples of RFC 6455 section 5.7, against a well-known peer, and against bad ones."""

from __future__ import annotations

import os
import random

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close as PeersClose
from websockets.frames import Frame as PeersFrame
from websockets.frames import Opcode
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage

from coatcheck.director.rules import websocket_frames
from coatcheck.director.rules.websocket_frames import (
    BAD_TEXT,
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_CODE,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Event,
    WebSocketReader,
    WebSocketViolation,
    WholeMessage,
    close_frame,
    frame,
)

LARGEST = 70_000
HELLO = WholeMessage(True, b"Hello")


def read(data: bytes, *, masked: bool, piece: int = 1 << 30, deflated: bool = False) -> list[Event]:
    reader = WebSocketReader(masked=masked, max_bytes=LARGEST, deflated=deflated)
    found: list[Event] = []
    for at in range(0, len(data), piece):
        reader.feed(data[at : at + piece])
        while (event := reader.next()) is not None:
            found.append(event)
    return found


EXAMPLES = {
    "a single-frame unmasked text message": ("81 05 48 65 6c 6c 6f", False, [HELLO]),
    "a single-frame masked text message": ("81 85 37 fa 21 3d 7f 9f 4d 51 58", True, [HELLO]),
    "a fragmented unmasked text message": ("01 03 48 65 6c 80 02 6c 6f", False, [HELLO]),
    "an unmasked ping": ("89 05 48 65 6c 6c 6f", False, [websocket_frames.Ping(b"Hello")]),
    "its masked pong": ("8a 85 37 fa 21 3d 7f 9f 4d 51 58", True, [websocket_frames.Pong()]),
    "256 bytes in one frame": ("82 7e 01 00" + "61" * 256, False, [WholeMessage(False, b"a" * 256)]),
    "64 KiB in one frame": ("82 7f 00 00 00 00 00 01 00 00" + "61" * 65536, False, [WholeMessage(False, b"a" * 65536)]),
}
"""RFC 6455, 5.7."""


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("piece", [1, 3, 1 << 30])
def test_examples_of_the_standard(name: str, piece: int) -> None:
    raw, masked, events = EXAMPLES[name]
    if piece == 1 and len(raw) > 10_000:
        piece = 997
    assert read(bytes.fromhex(raw), masked=masked, piece=piece) == events


def test_examples_of_the_standard_are_what_is_written() -> None:
    assert frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert frame(PING, b"Hello") == bytes.fromhex("890548656c6c6f")
    assert frame(BINARY, bytes(256))[:4] == bytes.fromhex("827e0100")
    assert frame(BINARY, bytes(65536))[:10] == bytes.fromhex("827f0000000000010000")
    assert read(frame(BINARY, b"a" * 65536, masked=True), masked=True) == [WholeMessage(False, b"a" * 65536)]


def test_a_peer_reads_what_is_written_and_writes_what_is_read() -> None:
    dice = random.Random(6455)
    ours, theirs = Connection(ConnectionType.CLIENT), Connection(ConnectionType.SERVER)
    for size in [0, 1, 125, 126, 127, 65535, 65536, *(dice.randrange(3000) for _ in range(40))]:
        data = os.urandom(size)
        text = "".join(dice.choice("aé€😀") for _ in range(size // 8))
        theirs.receive_data(frame(BINARY, data, masked=True) + frame(TEXT, text.encode(), masked=True))
        heard = list(theirs.events())
        assert b"".join(event.data for event in heard if isinstance(event, BytesMessage)) == data
        assert "".join(event.data for event in heard if isinstance(event, TextMessage)) == text
        said = ours.send(BytesMessage(data)) + ours.send(TextMessage(text))
        events = read(said, masked=True, piece=dice.randrange(1, 5000))
        assert events == [WholeMessage(False, data), WholeMessage(True, text.encode())]
    theirs.receive_data(close_frame(4001, "good bye", masked=True))
    (closed,) = theirs.events()
    assert isinstance(closed, CloseConnection)
    assert (closed.code, closed.reason) == (4001, "good bye")
    assert read(theirs.send(closed.response()), masked=False) == [websocket_frames.CloseFrame(4001, "good bye")]


@pytest.mark.parametrize("keeps_window", [True, False])
def test_compressed_messages_of_a_peer(keeps_window: bool) -> None:
    deflate = PerMessageDeflate(
        remote_no_context_takeover=not keeps_window,
        local_no_context_takeover=not keeps_window,
        remote_max_window_bits=12,
        local_max_window_bits=12,
    )
    messages = [b"tea and tea and tea" * n for n in range(1, 60)] + [b"", os.urandom(4000)]
    raw = b"".join(
        PeersFrame(Opcode.BINARY, message).serialize(mask=False, extensions=[deflate]) for message in messages
    )
    assert len(raw) < sum(map(len, messages)) // 2
    assert read(raw, masked=False, deflated=True, piece=77) == [WholeMessage(False, message) for message in messages]


def test_a_compressed_message_that_grows_too_large_is_none() -> None:
    deflate = PerMessageDeflate(False, False, 15, 15)
    raw = PeersFrame(Opcode.BINARY, bytes(LARGEST + 1)).serialize(mask=False, extensions=[deflate])
    assert len(raw) < 1000
    with pytest.raises(WebSocketViolation) as violation:
        read(raw, masked=False, deflated=True)
    assert violation.value.code == TOO_BIG


def test_control_frames_between_the_pieces_of_a_message() -> None:
    raw = bytes.fromhex("010348656c") + frame(PING, b"?") + bytes.fromhex("80026c6f") + close_frame(NO_CODE)
    assert read(raw, masked=False, piece=1) == [
        websocket_frames.Ping(b"?"), HELLO, websocket_frames.CloseFrame(NO_CODE, ""),
    ]  # fmt: skip


def test_close_frames_of_a_peer_and_for_it() -> None:
    for code, reason in ((1000, ""), (1012, "service restart"), (4999, "é" * 61)):
        raw = PeersFrame(Opcode.CLOSE, PeersClose(code, reason).serialize()).serialize(mask=False)
        assert read(raw, masked=False) == [websocket_frames.CloseFrame(code, reason)]
        assert close_frame(code, reason) == raw
    long = read(close_frame(1000, "€" * 100), masked=False)
    assert long == [websocket_frames.CloseFrame(1000, "€" * 41)]


BAD = {
    "a client that does not mask": (frame(TEXT, b"x"), True, PROTOCOL_ERROR),
    "a server that masks": (frame(TEXT, b"x", masked=True), False, PROTOCOL_ERROR),
    "an opcode that there is not": (b"\x83\x00", False, PROTOCOL_ERROR),
    "a control opcode that there is not": (b"\x8b\x00", False, PROTOCOL_ERROR),
    "a reserved bit": (b"\xc1\x00", False, PROTOCOL_ERROR),
    "another reserved bit": (b"\x91\x00", False, PROTOCOL_ERROR),
    "a ping in pieces": (b"\x09\x00", False, PROTOCOL_ERROR),
    "a ping that is too long": (b"\x89\x7e\x00\x7e" + bytes(126), False, PROTOCOL_ERROR),
    "a length of 16 bits that needs 7": (b"\x82\x7e\x00\x7d", False, PROTOCOL_ERROR),
    "a length of 64 bits that needs 16": (b"\x82\x7f" + (65535).to_bytes(8, "big"), False, PROTOCOL_ERROR),
    "the end of no message": (b"\x80\x00", False, PROTOCOL_ERROR),
    "a message within a message": (b"\x01\x00\x81\x00", False, PROTOCOL_ERROR),
    "text that is no UTF-8": (frame(TEXT, b"\xc3\x28"), False, BAD_TEXT),
    "half a character": (frame(TEXT, "é".encode()[:1]), False, BAD_TEXT),
    "a reason that is no UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), False, BAD_TEXT),
    "half a close code": (frame(CLOSE, b"\x03"), False, PROTOCOL_ERROR),
    "a close code of nobody": (frame(CLOSE, (999).to_bytes(2, "big")), False, PROTOCOL_ERROR),
    "a close code that no frame has": (frame(CLOSE, (1006).to_bytes(2, "big")), False, PROTOCOL_ERROR),
    "a message that is too large, before it comes": (
        b"\x82\x7f" + (LARGEST + 1).to_bytes(8, "big"), False, TOO_BIG,
    ),
    "pieces that are too large together": (
        bytes([BINARY]) + b"\x7e" + (60000).to_bytes(2, "big") + bytes(60000)
        + bytes([CONTINUATION]) + b"\x7e" + (10001).to_bytes(2, "big"), False, TOO_BIG,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("piece", [1, 1 << 30])
def test_what_breaks_the_rules_is_refused(name: str, piece: int) -> None:
    raw, masked, code = BAD[name]
    with pytest.raises(WebSocketViolation) as violation:
        read(raw, masked=masked, piece=997 if piece == 1 and len(raw) > 10_000 else piece)
    assert violation.value.code == code


def test_random_bytes_end_in_a_violation_or_in_nothing() -> None:
    dice = random.Random(5)
    for _ in range(3000):
        raw = dice.randbytes(dice.randrange(1, 60))
        if dice.random() < 0.5:
            raw = frame(dice.choice((TEXT, BINARY, PING, PONG, CLOSE)), raw, masked=True)[: dice.randrange(1, 70)] + raw
        try:
            events = read(raw, masked=True, piece=dice.randrange(1, 20))
        except WebSocketViolation as violation:
            assert violation.code in (PROTOCOL_ERROR, BAD_TEXT, TOO_BIG)
        else:
            assert sum(len(event.data) for event in events if isinstance(event, WholeMessage)) <= len(raw)
