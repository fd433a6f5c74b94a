"""One client of the session server: bytes in, bytes out, both bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from coatcheck import resp
from coatcheck.replication.entry import MAX_ENTRY_BYTES
from coatcheck.session_server.commands import answer
from coatcheck.session_server.requests import ProtocolViolation, RequestLimits, RequestParser
from coatcheck.session_server.state import SessionState

STRANGER_LIMITS: Final = RequestLimits(args=8, arg_bytes=512, request_bytes=1024, line_bytes=512)
MEMBER_LIMITS: Final = RequestLimits(
    args=64, arg_bytes=MAX_ENTRY_BYTES, request_bytes=MAX_ENTRY_BYTES + 64 * 1024, line_bytes=1024
)
WRITE_AT_BYTES: Final = 64 * 1024
"""Replies are gathered up to this size before they are written."""
PAUSE_AT_BYTES: Final = 1024 * 1024
"""Above this many unsent bytes no further requests of this client are answered until it has read some."""
MAX_UNSENT_BYTES: Final = 8 * 1024 * 1024
"""A subscriber that leaves this much unread is dropped."""
MAX_UNPARSED_BYTES: Final = MEMBER_LIMITS.request_bytes + 1024 * 1024

LOGIN_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 5.0
"""A request must be complete this long after its first bytes."""
UNREAD_TIMEOUT_S: Final = 5.0


class SessionConnection(asyncio.Protocol):
    """Parses requests, writes replies, and gives up clients that ask too much of us."""

    def __init__(
        self,
        state: SessionState,
        clock: Callable[[], float],
        admit: Callable[[SessionConnection], bool],
        foreign: Callable[[asyncio.BaseTransport], bool] = lambda transport: False,
    ) -> None:
        """``foreign`` says whether another user is at the other end, who gets no word from us."""
        self.authenticated = not state.needs_password
        self.resp3 = False
        self.closing = False
        self.failed_logins = 0
        self.awaited_proof = b""
        self.channels: set[bytes] = set()
        self._state = state
        self._clock = clock
        self._admit = admit
        self._foreign = foreign
        self._parser = RequestParser(MEMBER_LIMITS if self.authenticated else STRANGER_LIMITS)
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._connected_at = clock()
        self._partial_since: float | None = None
        self._unread_since: float | None = None

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        return self._transport

    def push(self, message: bytes) -> None:
        """Send bytes that answer no request; a client that does not read them is dropped."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(message)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            transport.abort()

    def overdue(self, now: float) -> bool:
        """Whether this client has kept us waiting for too long."""
        if not self.authenticated and now - self._connected_at > LOGIN_TIMEOUT_S:
            return True
        if self._partial_since is not None and now - self._partial_since > REQUEST_TIMEOUT_S:
            return True
        return self._unread_since is not None and now - self._unread_since > UNREAD_TIMEOUT_S

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=PAUSE_AT_BYTES)
        if self._foreign(transport):
            self.closing = True
            self._transport.abort()
        elif self._admit(self):
            self._state.clients[self] = None
        else:
            self._transport.write(resp.error("ERR", "max number of clients reached"))
            self._close()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self._parser.feed(data)
        self._answer_all()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._transport = None
        self._state.forget(self)

    def pause_writing(self) -> None:
        self._paused = True
        self._unread_since = self._clock()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._transport is not None and not self.closing:
            self._unread_since = None
            self._answer_all()
            if not self._paused and not self._transport.is_closing():
                self._transport.resume_reading()

    def _answer_all(self) -> None:
        """Answer what has arrived, as far as the client reads our answers."""
        transport = self._transport
        if transport is None:
            return
        parser, state = self._parser, self._state
        out: list[bytes] = []
        size = 0
        try:
            while not self._paused and not self.closing:
                request = parser.next()
                if request is None:
                    break
                stranger = not self.authenticated
                reply = answer(state, self, request)
                if stranger and self.authenticated:
                    parser.limits = MEMBER_LIMITS
                out.append(reply)
                size += len(reply)
                if size >= WRITE_AT_BYTES:
                    transport.write(b"".join(out))
                    out.clear()
                    size = 0
            if parser.buffered_bytes > MAX_UNPARSED_BYTES:
                raise ProtocolViolation("too many requests at once")
        except ProtocolViolation as violation:
            out.append(resp.error("ERR", f"Protocol error: {violation}"))
            self.closing = True
        if out:
            transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._mark_partial()
        if self.closing:
            self._close()

    def _close(self) -> None:
        """Close once our last words are sent; a client that does not read them is dropped in time."""
        self.closing = True
        self._unread_since = self._unread_since or self._clock()
        if self._transport is not None:
            self._transport.close()

    def _mark_partial(self) -> None:
        if self._paused or not self._parser.buffered_bytes:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = self._clock()
