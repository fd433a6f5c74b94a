"""What a director and a web server tell each other about a durable WebSocket (docs/durable-websockets.md).

Each word is one binary message of the WebSocket between the two. Messages are counted from 1 in each direction.
"""

from __future__ import annotations

from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError

HEADER: Final = b"x-session-durable"
"""In an upgrade request, set by directors alone: :data:`OFFER`, or :func:`going_on`. In the response: the ticket."""

OFFER: Final = b"offered"
"""The director can hold this WebSocket when its web server is gone."""

GO_ELSEWHERE: Final = 1012
"""The close code of a web server that lets go: another one is to have the WebSocket, and its client notices nothing."""

CONNECT_ANEW: Final = 4912
"""The close code of a web server that cannot go on with what another one had; the client is told 1012."""

MAX_TICKET_BYTES: Final = 512

_MESSAGE, _HAVE, _ENDED, _COMMITTED = 1, 2, 3, 4
_TEXT, _BINARY = b"t", b"b"
_NUMBER_BYTES: Final = 8
WORD_BYTES: Final = 1 + _NUMBER_BYTES + 1
"""What a word adds to a message."""


class BadWord(CoatcheckError):
    """Bytes that are no word of ours: whoever is at the other end speaks something else."""


class NumberedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message of the client, or one for it; ``data`` is UTF-8 if it is text."""

    number: int
    is_text: bool
    data: bytes


class Have(msgspec.Struct, frozen=True, gc=False):
    """The director has the web server's messages up to this one: the client gets them, whoever dies."""

    number: int


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The client says no more: it has closed with this code, or is gone (1006)."""

    code: int
    reason: str


class Committed(msgspec.Struct, frozen=True, gc=False):
    """What the client's messages up to this one did is stored; ``ticket`` opens it for another web server."""

    number: int
    ticket: bytes


Word = NumberedMessage | Have | Ended | Committed


def encode(word: Word) -> bytes:
    """The word as the payload of a binary message."""
    if isinstance(word, NumberedMessage):
        return _head(_MESSAGE, word.number) + (_TEXT if word.is_text else _BINARY) + word.data
    if isinstance(word, Have):
        return _head(_HAVE, word.number)
    if isinstance(word, Committed):
        return _head(_COMMITTED, word.number) + word.ticket
    return _head(_ENDED, word.code) + word.reason.encode()


def decode(payload: bytes) -> Word:
    """The reverse of :func:`encode`; raises :class:`BadWord`."""
    if len(payload) < 1 + _NUMBER_BYTES:
        raise BadWord(f"a word of {len(payload)} bytes")
    kind, number, rest = payload[0], int.from_bytes(payload[1 : 1 + _NUMBER_BYTES], "big"), payload[1 + _NUMBER_BYTES :]
    if kind == _MESSAGE and rest[:1] in (_TEXT, _BINARY):
        return NumberedMessage(number, rest[:1] == _TEXT, rest[1:])
    if kind == _HAVE and not rest:
        return Have(number)
    if kind == _COMMITTED and len(rest) <= MAX_TICKET_BYTES:
        return Committed(number, rest)
    if kind == _ENDED:
        return Ended(number, rest.decode(errors="replace"))
    raise BadWord(f"a word of the kind {kind}")


def going_on(have: int, ticket: bytes) -> bytes:
    """The header's value where another web server had the WebSocket before."""
    return b"%d %b" % (have, ticket)


def read_going_on(value: bytes) -> tuple[int, bytes] | None:
    """How many of the web server's messages the director has, and the ticket; ``None``: it is a new WebSocket."""
    have, _, ticket = value.partition(b" ")
    if not have.isdigit() or not 0 < len(ticket) <= MAX_TICKET_BYTES:
        return None
    return int(have), ticket


def _head(kind: int, number: int) -> bytes:
    return bytes([kind]) + number.to_bytes(_NUMBER_BYTES, "big")
