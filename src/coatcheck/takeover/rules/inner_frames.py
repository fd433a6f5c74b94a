"""What a director and a web server tell each other about a connection, between the TLS records that they pass.

Frames look like TLS records with content types that TLS does not have, so that one splitter cuts both; a client that
sends one is refused by its type. The inner link is a Unix socket of the farm's own user.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, Final

import msgspec

from coatcheck.takeover.rules.tls_records import FIRST_TYPE, HEADER_BYTES, MAX_CIPHERTEXT_BYTES, BadRecord

MAX_STATE_BYTES: Final = 8192
"""Of each sealed thing that a director keeps; both, and what else a hello says, have room in one frame."""
_COMMIT: Final = struct.Struct(">QI")
_REPEATABLE: Final = struct.Struct(">QI")


class Frame(IntEnum):
    """The content types of frames."""

    # From the director
    HELLO = 0xF0
    """The first one: which connection this is."""
    MOVE = 0xF1
    """Let go of this connection as soon as nothing is under way on it; end it, if no other server can go on."""
    END = 0xF2
    """End this connection as soon as nothing is under way on it."""

    # From the web server
    ESTABLISHED = 0xF4
    """The handshake is done."""
    STATE = 0xF5
    """Keep this, sealed, in the place of what was kept before."""
    COMMIT = 0xF6
    """When so many more records have left for the client, its records up to here are answered."""
    REPEATABLE = 0xF7
    """When so many more records have left, so many bytes of a response have; keep this, sealed, with it."""
    RELEASED = 0xF8
    """As MOVE asked: nothing behind the last commit was looked at."""
    CLOSE = 0xF9
    """The connection is over; what came before still goes to the client."""
    BREAK = 0xFA
    """The connection is over, and the client is to see a break."""
    BEGUN = 0xFB
    """Of what is not answered something is being carried out that must not be done twice."""


FROM_DIRECTOR: Final = (FIRST_TYPE, Frame.END)
FROM_SERVER: Final = (FIRST_TYPE, Frame.BEGUN)
"""The content types that each may send, first and last; what lies between is nobody's and refused by its reader."""


Count = Annotated[int, msgspec.Meta(ge=0)]


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Which connection a web server is given."""

    peer: tuple[str, int]
    """The client's address."""
    local: tuple[str, int]
    """The address that it connected to."""
    state: bytes = b""
    """What the web server before left of it; empty: it begins here."""
    committed: Count = 0
    """How many encrypted records of the client's are answered; those behind follow, as they came."""
    delivered: Count = 0
    """How many encrypted records have left for the client."""
    replayed: Count = 0
    """How many of the records that follow were given to another web server before."""
    sends: Count = 0
    """How many web servers have had them."""
    begun: bool = False
    """Whether one of those may have carried out what must not be done twice."""
    repeatable: bytes = b""
    """What the web server before said of a response of which a part has left; it is sealed."""
    left: Count = 0
    """How many bytes of it have left, the head included."""


def frame(kind: Frame, payload: bytes = b"") -> bytes:
    """The bytes of a frame. Raises ``ValueError`` if there is too much in it."""
    if len(payload) > MAX_CIPHERTEXT_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes")
    return bytes((kind, 3, 3, len(payload) >> 8, len(payload) & 0xFF)) + payload


def hello(what: Hello) -> bytes:
    """The first frame of an inner link."""
    return frame(Frame.HELLO, _ENCODER.encode(what))


def read_hello(record: bytes) -> Hello:
    """Raises :class:`BadRecord` for anything else."""
    if record[0] != Frame.HELLO:
        raise BadRecord("an inner link that does not begin with a hello")
    try:
        return _DECODER.decode(record[HEADER_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"a malformed hello: {error}") from None


def commit(answered: int, after: int) -> bytes:
    """``answered``: of the client's encrypted records; ``after``: of those that follow on this link."""
    return frame(Frame.COMMIT, _COMMIT.pack(answered, after))


def read_commit(record: bytes) -> tuple[int, int]:
    """Raises :class:`BadRecord`."""
    try:
        answered, after = _COMMIT.unpack(record[HEADER_BYTES:])
    except struct.error:
        raise BadRecord("a malformed commit") from None
    return answered, after


def repeatable(left: int, after: int, sealed: bytes) -> bytes:
    """``left``: bytes of the response, when ``after`` more records have left; ``sealed`` is empty: no longer."""
    return frame(Frame.REPEATABLE, _REPEATABLE.pack(left, after) + sealed)


def read_repeatable(record: bytes) -> tuple[int, int, bytes]:
    """Raises :class:`BadRecord`."""
    at = HEADER_BYTES + _REPEATABLE.size
    try:
        left, after = _REPEATABLE.unpack(record[HEADER_BYTES:at])
    except struct.error:
        raise BadRecord("a malformed word on a response") from None
    return left, after, record[at:]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Hello)
