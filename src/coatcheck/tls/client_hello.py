"""Reading a ClientHello that has not been taken off the socket: which sessions does this client offer?

For bytes of strangers: never raises, and looks at :data:`MAX_HELLO_BYTES` at most. It decides nothing: what it gets
wrong costs a full handshake, since OpenSSL reads the same bytes again. RFC 8446 sections 4.1.2, 4.2.11 and 5.1;
RFC 5246 section 7.4.1.2. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_HELLO_BYTES: Final = 64 * 1024
"""A ClientHello has 200 to 2,000 bytes; OpenSSL refuses those above 128 KiB."""
MAX_OFFERS: Final = 8
_MAX_RECORD_BYTES: Final = 16 * 1024
_RECORD_HEAD_BYTES: Final = 5
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_BEFORE_SESSION_ID: Final = 2 + 32
_PRE_SHARED_KEY: Final = 41


class ClientHello(NamedTuple):
    """The sessions that a client offers, in its order: TLS 1.3 identities, then the TLS 1.2 session ID."""

    offers: tuple[bytes, ...]


class NotAHello(NamedTuple):
    """These bytes are no ClientHello, or none that can be read."""


class Incomplete(NamedTuple):
    """More bytes are needed to know."""


Reading = ClientHello | NotAHello | Incomplete
_NO_HELLO: Final = NotAHello()
_MORE: Final = Incomplete()


def read_client_hello(data: bytes) -> Reading:
    """What the first bytes of a connection are."""
    message = b""
    at = 0
    while True:
        head = data[at : at + _RECORD_HEAD_BYTES]
        if head[:1] not in (b"", b"\x16") or head[1:2] not in (b"", b"\x03"):
            return _NO_HELLO
        if len(head) < _RECORD_HEAD_BYTES:
            return _MORE
        size = int.from_bytes(head[3:], "big")
        if not 0 < size <= _MAX_RECORD_BYTES:
            return _NO_HELLO
        at += _RECORD_HEAD_BYTES
        message += data[at : at + size]
        if message[0:1] not in (b"", bytes([_CLIENT_HELLO])):
            return _NO_HELLO
        whole = 4 + int.from_bytes(message[1:4], "big") if len(message) >= 4 else MAX_HELLO_BYTES
        if whole > MAX_HELLO_BYTES:
            return _NO_HELLO
        if len(message) >= whole:
            return _read(message[4:whole])
        if at + size > len(data):
            return _MORE
        at += size


def _read(body: bytes) -> ClientHello | NotAHello:
    fields = _Fields(body)
    try:
        fields.skip(_BEFORE_SESSION_ID)
        session_id = fields.vector(1)
        fields.vector(2)  # cipher suites
        fields.vector(1)  # compression
        identities = _identities(_Fields(fields.vector(2))) if fields.left else []
    except _TooShort:
        return _NO_HELLO
    offers = [offer for offer in (*identities, session_id) if offer]
    return ClientHello(tuple(offers[:MAX_OFFERS]))


def _identities(extensions: _Fields) -> list[bytes]:
    found: list[bytes] = []
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind == _PRE_SHARED_KEY:
            offered = _Fields(_Fields(content).vector(2))
            while offered.left and len(found) < MAX_OFFERS:
                found.append(offered.vector(2))
                offered.skip(4)  # the ticket's age
    return found


class _TooShort(Exception):
    """A length says more than there is."""


class _Fields:
    """Takes fields off bytes, from the left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def skip(self, size: int) -> None:
        self._take(size)

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        """Bytes behind their length (RFC 8446 section 3.4)."""
        return self._take(self.number(length_bytes))

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise _TooShort
        self._at += size
        return self._data[self._at - size : self._at]
