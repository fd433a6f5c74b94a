"""What a session keeps of a durable WebSocket, so that another web server can go on with it (mission N15).

One entry for each, changed in the same write as the data: which messages of the client are done, and which answers may
not have reached it. ``holder`` counts the web servers that have had it; only the latest may change the entry.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from coatcheck.errors import ConflictError, SessionDataError, TokenReason, TokenRejected
from coatcheck.tokens.keyring import KeyRing, RandomBytes

SOCKET_ID_BYTES: Final = 8
MAX_SOCKETS: Final = 64
"""Durable WebSockets of one session; for one more the one that was silent longest is forgotten, and ends when it
speaks."""
MAX_ANSWER_BYTES: Final = 256 * 1024
"""Of all answers that one durable WebSocket keeps in its session until they have left."""


class SentMessage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message for the client; ``data`` is UTF-8 if it is text."""

    is_text: bool
    data: bytes


class SocketState(msgspec.Struct, frozen=True, array_like=True):
    """``done``: the client's messages up to this one are. ``sent``: so many answers have left for certain, and
    ``answers`` are those behind them. ``close``: the code and reason with which it ends behind them.

    ``at``: when it was last written, Unix ms.
    """

    holder: int
    done: int
    sent: int
    answers: tuple[SentMessage, ...]
    close: tuple[int, str] | None
    at: int

    def taken(self, now: int) -> SocketState:
        """Another web server has it."""
        return msgspec.structs.replace(self, holder=self.holder + 1, at=now)

    def after(
        self, done: int, answers: tuple[SentMessage, ...], have: int, close: tuple[int, str] | None, now: int
    ) -> SocketState:
        """After the client's messages up to ``done``, with these answers; the director has those up to ``have``.

        Raises :class:`SessionDataError` when more has to be kept than :data:`MAX_ANSWER_BYTES`.
        """
        left = max(0, min(have - self.sent, len(self.answers)))
        kept = (*self.answers[left:], *answers)
        size = sum(len(answer.data) for answer in kept)
        if size > MAX_ANSWER_BYTES:
            raise SessionDataError(
                f"a durable WebSocket keeps its answers until they have left: {size} bytes; at most {MAX_ANSWER_BYTES}"
            )
        return SocketState(self.holder, done, self.sent + left, kept, close or self.close, now)


Sockets = Mapping[bytes, SocketState]


class SocketChange(msgspec.Struct, frozen=True):
    """From what is stored of a WebSocket to what is to be; ``None``: nothing."""

    socket: bytes
    before: SocketState | None
    after: SocketState | None

    def applied(self, sockets: Sockets | None) -> dict[bytes, SocketState] | None:
        """The session's entries after the change; the same object if it was made before.

        Raises :class:`ConflictError` if what is stored is another one: then another web server has the WebSocket.
        """
        stored = dict(sockets or {})
        found = stored.get(self.socket)
        if found == self.after:
            return sockets  # type: ignore[return-value]  # by a write that was refused, and got in all the same
        if found != self.before:
            raise ConflictError("another web server has this WebSocket, or it is forgotten")
        stored.pop(self.socket, None)
        if self.after is not None:
            stored[self.socket] = self.after
        while len(stored) > MAX_SOCKETS:
            del stored[min(stored, key=lambda socket: stored[socket].at)]
        return stored or None


class SocketTicket(msgspec.Struct, frozen=True):
    """What another web server needs to find a WebSocket's session: no token of the browser's is asked for.

    ``version``: what must be found, at least; ``list_number``: of the session servers that have it.
    """

    key: bytes
    socket: bytes
    version: bytes
    list_number: int
    login: bool

    def __repr__(self) -> str:
        return "<SocketTicket>"


_TICKET: Final = struct.Struct(f">16s{SOCKET_ID_BYTES}s16sBB")


class TicketCodec:
    """Seals tickets for directors to carry, which hold no key and so can neither read nor make one."""

    def __init__(self, ring: KeyRing, farm: str, random_bytes: RandomBytes) -> None:
        self._box = ring.box("websocket", farm, random_bytes)

    def seal(self, ticket: SocketTicket) -> bytes:
        """In base64url, fit for a header."""
        plain = _TICKET.pack(ticket.key, ticket.socket, ticket.version, ticket.list_number, ticket.login)
        return base64.urlsafe_b64encode(self._box.seal(plain))

    def open(self, text: bytes) -> SocketTicket:
        """Raises :class:`TokenRejected` for what this farm did not seal."""
        try:
            key, socket, version, number, login = _TICKET.unpack(self._box.open(base64.urlsafe_b64decode(text)))
        except (binascii.Error, struct.error):
            raise TokenRejected(TokenReason.MALFORMED) from None
        return SocketTicket(key, socket, version, number, bool(login))
