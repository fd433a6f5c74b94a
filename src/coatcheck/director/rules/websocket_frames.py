"""WebSocket frames and the messages in them (RFC 6455, 5): read strictly, within bounds, and written whole."""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_CONTROL_BYTES: Final = 125
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_CODE, GONE = 1000, 1001, 1002, 1005, 1006
BAD_TEXT, TOO_BIG, FAILED, RESTART = 1007, 1009, 1011, 1012
"""Close codes (RFC 6455, 7.4.1, and its registry)."""

_FINAL, _RSV1, _RESERVED, _MASKED = 0x80, 0x40, 0x30, 0x80
_NO_MASK: Final = bytes(4)
_DEFLATE_TAIL: Final = b"\x00\x00\xff\xff"
_MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2


class WebSocketViolation(CoatcheckError):
    """The other end breaks the rules; ``code`` is what it is to be closed with."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class WholeMessage(msgspec.Struct, frozen=True, gc=False):
    """A message, however many frames it came in."""

    is_text: bool
    data: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    """To be answered with the same data (RFC 6455, 5.5.3)."""

    data: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    """A sign of life."""


class CloseFrame(msgspec.Struct, frozen=True, gc=False):
    """The other end says no more."""

    code: int
    reason: str


Event = WholeMessage | Ping | Pong | CloseFrame


class _Frame(msgspec.Struct, frozen=True, gc=False):
    first: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F


class WebSocketReader:
    """What one end sends, cut into messages: :meth:`feed` bytes, then :meth:`next` until it has nothing.

    Holds a message of ``max_bytes`` and one read at most. ``masked``: whether it is a client. ``deflated``: whether its
    messages may be compressed (RFC 7692).
    """

    __slots__ = ("_buffer", "_deflated", "_inflate", "_is_text", "_masked", "_max_bytes", "_message")

    def __init__(self, *, masked: bool, max_bytes: int, deflated: bool = False) -> None:
        self._masked = _MASKED if masked else 0
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._message: bytearray | None = None
        self._is_text = self._deflated = False
        # One window for all messages: whoever begins each with an empty one refers to nothing before it.
        self._inflate = zlib.decompressobj(wbits=-15) if deflated else None

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        self._buffer += data

    def next(self) -> Event | None:
        """The next message or control frame that is whole.

        Raises :class:`WebSocketViolation`; then nothing more can be read.
        """
        while (frame := self._frame()) is not None:
            if frame.opcode >= CLOSE:
                return _control(frame)
            if (message := self._data(frame)) is not None:
                return message
        return None

    def _frame(self) -> _Frame | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        self._check_head(first, second)
        size, at = second & 0x7F, 2
        if size == 126 or size == 127:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return None
            short = 126 if size == 126 else 1 << 16
            size = int.from_bytes(buffer[2:at], "big")
            if size < short:
                raise WebSocketViolation(PROTOCOL_ERROR, "a length in more bytes than it needs")
        if first & 0x0F >= CLOSE and size > MAX_CONTROL_BYTES:
            raise WebSocketViolation(PROTOCOL_ERROR, "a control frame that is too long")
        if size + len(self._message or b"") > self._max_bytes:
            raise WebSocketViolation(TOO_BIG, f"a message of more than {self._max_bytes} bytes")
        begin = at + 4 if self._masked else at
        if len(buffer) < begin + size:
            return None
        payload = bytes(buffer[begin : begin + size])
        if self._masked and payload:
            payload = _unmasked(payload, bytes(buffer[at:begin]))
        del buffer[: begin + size]
        return _Frame(first, payload)

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise WebSocketViolation(PROTOCOL_ERROR, f"the opcode {opcode}")
        compressed_start = self._inflate is not None and opcode in (TEXT, BINARY)
        if first & _RESERVED or (first & _RSV1 and not compressed_start):
            raise WebSocketViolation(PROTOCOL_ERROR, "a reserved bit that nobody agreed on")
        if opcode >= CLOSE and not first & _FINAL:
            raise WebSocketViolation(PROTOCOL_ERROR, "a control frame in pieces")
        if second & _MASKED != self._masked:
            raise WebSocketViolation(PROTOCOL_ERROR, "clients mask, and servers do not")
        if (opcode == CONTINUATION) != (self._message is not None) and opcode < CLOSE:
            raise WebSocketViolation(PROTOCOL_ERROR, "a message within a message, or the end of none")

    def _data(self, frame: _Frame) -> WholeMessage | None:
        if self._message is None:
            self._message = bytearray()
            self._is_text, self._deflated = frame.opcode == TEXT, bool(frame.first & _RSV1)
        self._message += frame.payload
        if not frame.first & _FINAL:
            return None
        data, self._message = bytes(self._message), None
        if self._deflated:
            data = self._inflated(data)
        if self._is_text:
            _check_text(data)
        return WholeMessage(self._is_text, data)

    def _inflated(self, data: bytes) -> bytes:
        assert self._inflate is not None
        try:
            plain = self._inflate.decompress(data + _DEFLATE_TAIL, self._max_bytes + 1)
        except zlib.error as error:
            raise WebSocketViolation(BAD_TEXT, f"a compressed message: {error}") from None
        if len(plain) > self._max_bytes:
            raise WebSocketViolation(TOO_BIG, f"a message of more than {self._max_bytes} bytes")
        return plain


def frame(opcode: int, payload: bytes, *, masked: bool = False) -> bytes:
    """A whole message or control frame.

    ``masked``: from a client's end. Our only servers are our own, with nobody between who could be confused by what a
    frame looks like (RFC 6455, 10.3): the mask is nothing but zeros, and changes nothing.
    """
    size, mark = len(payload), _MASKED if masked else 0
    if size < 126:
        head = bytes((_FINAL | opcode, mark | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, mark | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, mark | 127)) + size.to_bytes(8, "big")
    return head + (_NO_MASK + payload if masked else payload)


def close_frame(code: int, reason: str = "", *, masked: bool = False) -> bytes:
    """A close frame; one without a code for the codes that no frame may have."""
    if code in (NO_CODE, GONE):
        return frame(CLOSE, b"", masked=masked)
    shortened = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore").encode()
    return frame(CLOSE, code.to_bytes(2, "big") + shortened, masked=masked)


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def _control(frame: _Frame) -> Event:
    if frame.opcode == PING:
        return Ping(frame.payload)
    if frame.opcode == PONG:
        return Pong()
    payload = frame.payload
    if not payload:
        return CloseFrame(NO_CODE, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not _may_be_sent(code):
        raise WebSocketViolation(PROTOCOL_ERROR, f"the close code {code}")
    return CloseFrame(code, _check_text(payload[2:]))


def _may_be_sent(code: int) -> bool:
    """Whether a close frame may have the code (RFC 6455, 7.4; 1012 to 1014 are of its registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, NO_CODE, GONE))


def _check_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WebSocketViolation(BAD_TEXT, "text that is no UTF-8") from None
