"""A client's connection: finds each request's head and body, serves them one after another, and ends in order."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, cast

from coatcheck.director.exchange import Exchange
from coatcheck.director.relay import Fault, Relay
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.forwarding import ClientAddress, is_reserved, request_tail
from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import CHUNKED, BadHead, HeadFault
from coatcheck.director.rules.request_head import RequestFields, RequestHead
from coatcheck.director.rules.response_head import own_response

# Why a client is not read at the moment.
_PIPELINED: Final = 1
_BODY_HELD: Final = 2
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_FIRST_BYTES: Final = frozenset(b"\r!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Downstream(asyncio.Protocol):
    """One connection from a client."""

    __slots__ = (
        "_address",
        "_behind",
        "_buffer",
        "_chunks",
        "_cookies",
        "_fields",
        "_guest",
        "_lingering",
        "_paced",
        "_paced_bytes",
        "_paced_size",
        "_pauses",
        "_relay",
        "_remaining",
        "_searched",
        "_stalled_bytes",
        "_tag",
        "_tail",
        "body_done",
        "deadline",
        "exchange",
        "half_closed",
        "transport",
        "write_paused",
    )  # fmt: skip

    def __init__(self, relay: Relay, guest: Guest | None = None) -> None:
        """``guest``: of a connection that was counted before its handshake."""
        self._relay = relay
        self._guest = guest
        self._behind: Guest | None = None
        # Of the current round of the least rates: whether a body came through all of it, and how much of it; and
        # what waited for the client when it began, if it took nothing before.
        self._paced = False
        self._paced_bytes = 0
        self._paced_size: int | None = None
        self.transport = cast(asyncio.Transport, None)
        self.exchange: Exchange | None = None
        self.body_done = True
        """Whether the body of the current request has come in full."""
        self.half_closed = False
        self.write_paused = False
        self.deadline = 0.0
        self._address = cast(ClientAddress, None)
        self._fields: RequestFields | None = None
        self._tail = b""
        self._cookies = b""
        self._tag: bytes | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._remaining = 0
        self._chunks: ChunkedReader | None = None
        self._pauses = 0
        self._lingering = False
        self._stalled_bytes = 0

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        relay = self._relay
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(relay.options.buffer_bytes)
        peername = transport.get_extra_info("peername")
        peer = peername[0] if isinstance(peername, tuple) else "unknown"
        tls = transport.get_extra_info("ssl_object") is not None
        self._address = ClientAddress(peer, tls=tls, trusted=relay.trusted)
        self.deadline = relay.now + relay.options.header_read_s
        relay.clients.add(self)
        if self._guest is None:
            self._guest = relay.enter(peer)
            self._check_room(self._guest)

    def _check_room(self, guest: Guest) -> None:
        relay = self._relay
        # Itself it is idle too, but must not make room for itself.
        relay.clients.discard(self)
        fault = relay.too_many(guest)
        relay.clients.add(self)
        if fault is None:
            return
        if relay.is_flooded(guest):
            relay.count(fault)
            self.transport.abort()
        else:
            self._refuse(429 if fault is Fault.TOO_MANY_FROM_ADDRESS else 503, fault)

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)
        exchange = self._end_exchange()
        if exchange is not None:
            self._relay.count(Fault.CLIENT_GONE)
            exchange.abandon()
        if self._guest is not None:
            self._guest.leave()

    def _end_exchange(self) -> Exchange | None:
        exchange, self.exchange = self.exchange, None
        if self._behind is not None:
            self._behind.leave()
            self._behind = None
        return exchange

    def eof_received(self) -> bool:
        # A client may end its side after the request and still wait for the answer (RFC 9112, 9.6).
        self.half_closed = True
        if self.exchange is not None:
            return self.body_done
        if self._buffer and not self._lingering:
            self._relay.loop.call_soon(self._next)
            return True
        return False

    def become_tunnel(self) -> tuple[bytes, list[Guest]]:
        """Leave the connection to a tunnel; answers the bytes that came too early, and what counts for it."""
        self._relay.clients.discard(self)
        self.exchange = None
        return bytes(self._buffer), [guest for guest in (self._guest, self._behind) if guest is not None]

    @property
    def is_last_request(self) -> bool:
        """Whether the client has ended its side, and nothing of it is left to be served."""
        return self.half_closed and not self._buffer

    def pause_writing(self) -> None:
        self.write_paused = True
        self._stalled_bytes = self.transport.get_write_buffer_size()
        if self.exchange is not None and self.exchange.upstream is not None:
            self.exchange.upstream.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._paced_size = None
        if self.exchange is None:
            self._next()
        elif self.exchange.upstream is not None:
            self.exchange.upstream.resume_reading()

    def hold_body(self) -> None:
        """The web server takes no more of the body for now."""
        if not self.body_done:
            self._paced = False
            self._pause(_BODY_HELD)

    def release_body(self) -> None:
        """The web server takes bytes again, or needs no more of them."""
        if self._pauses & _BODY_HELD:
            self._unpause(_BODY_HELD)

    def _pause(self, why: int) -> None:
        if not self._pauses and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses |= why

    def _unpause(self, why: int) -> None:
        if self._pauses == why and not self.transport.is_closing():
            self.transport.resume_reading()
        self._pauses &= ~why

    # Requests

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            if self._lingering:
                return
            if self._buffer:
                self._buffer += data
                self._next()
            else:
                self._take_head(data)
        elif self.body_done:
            # The next request, before this one was answered: it waits, and what is behind it is not even read.
            self._buffer += data
            self._pause(_PIPELINED)
        else:
            self._take_body(data)

    def _next(self) -> None:
        """Go on with what has been buffered."""
        if self.exchange is not None or self._lingering or self.write_paused or self.transport.is_closing():
            return
        self._unpause(_PIPELINED)
        if self._buffer.find(b"\r\n\r\n", self._searched) >= 0:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._searched = 0
            self._take_head(data)
        elif self._buffer:
            self._check_partial_head()
        if self.half_closed and self.exchange is None and not self._lingering:
            self.transport.close()

    def _take_head(self, data: bytes) -> None:
        options = self._relay.options
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer += data
            self.deadline = self._relay.now + options.header_read_s
            self._check_partial_head()
            return
        try:
            if end > options.max_head_bytes:
                raise BadHead(HeadFault.TOO_LARGE, 431)
            # One empty line before a request is forgiven (RFC 9112, 2.2).
            start = 2 if data.startswith(b"\r\n") else 0
            head = self._relay.reader.read(data[start:end])
        except BadHead as fault:
            self._refuse(fault.status, Fault.BAD_REQUEST)
            return
        end += 4
        self._begin(head, data[end:] if len(data) > end else b"")

    def _check_partial_head(self) -> None:
        """Refuse at once what can never become a good head."""
        buffer, start = self._buffer, self._searched
        if len(buffer) > self._relay.options.max_head_bytes:
            self._refuse(431, Fault.BAD_REQUEST)
        elif buffer.count(b"\n", start) != buffer.count(b"\r\n", max(0, start - 1)) or buffer[0] not in _FIRST_BYTES:
            self._refuse(400, Fault.BAD_REQUEST)
        else:
            self._searched = max(0, len(buffer) - 3)

    def _begin(self, head: RequestHead, rest: bytes) -> None:
        relay, fields = self._relay, head.fields
        relay.requests += 1
        if fields is not self._fields:
            self._fields = fields
            self._tail = request_tail(fields, self._address)
        cookies = head.cookies
        if cookies != self._cookies:
            self._cookies = cookies
            self._tag = relay.read_tag(cookies)
        if cookies and not fields.cookies:
            request = b"%b %b%bCookie: %b\r\n\r\n" % (head.method, head.target, self._tail, cookies)
        else:
            request = b"%b %b%b\r\n" % (head.method, head.target, self._tail)
        exchange = self.exchange = Exchange(relay, self, head, request, self._tag)
        self._paced = False
        if fields.length:
            self.body_done = False
            self._remaining = fields.length
            self._chunks = ChunkedReader() if fields.length == CHUNKED else None
        if rest:
            self.data_received(rest)
        if self.exchange is not exchange:
            return
        fault = self._refusal(fields) if fields.websocket or self._address.is_trusted else None
        if fault is not None:
            self.fail(429 if fault is Fault.TOO_MANY_FROM_ADDRESS else 503, fault)
        elif is_reserved(head.target):
            self.answer(404)
        else:
            exchange.dispatch()

    def _refusal(self, fields: RequestFields) -> Fault | None:
        """Why a request of somebody behind a proxy, or a WebSocket, is one too many."""
        relay = self._relay
        client = self._address.client_behind(fields)
        if client is not None:
            self._behind = relay.admission.enter(client, is_connection=False)
            fault = relay.too_many(self._behind)
            if fault is not None:
                return fault
        return None if not fields.websocket or relay.takes_websockets else Fault.TOO_MANY_WEBSOCKETS

    def _take_body(self, data: bytes) -> None:
        exchange, relay = self.exchange, self._relay
        assert exchange is not None
        self._paced_bytes += len(data)
        if self._chunks is None:
            piece, rest = data[: self._remaining], data[self._remaining :]
            self._remaining -= len(piece)
            self.body_done = not self._remaining
        else:
            try:
                payload = self._chunks.feed(data)
            except BadHead:
                self.fail(400, Fault.BAD_REQUEST)
                return
            self.body_done, rest = self._chunks.done, self._chunks.rest
            # Framed anew, so that what the web server reads is what we understood.
            piece = b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in payload])
            if self.body_done:
                piece += b"0\r\n\r\n"
        if not exchange.is_parked:
            self.deadline = relay.now + self.answer_timeout_s()
        exchange.feed(piece)
        if self.body_done:
            self.release_body()
        if rest:
            self.data_received(rest)

    # Responses

    def answer_timeout_s(self) -> float:
        """How long the next byte may take: of the answer, or of a body that is still coming."""
        options = self._relay.options
        return options.first_byte_s if self.body_done else options.between_bytes_s

    def response_done(self) -> None:
        """The response has been written in full: on to the next request, or to the end."""
        exchange = self._end_exchange()
        assert exchange is not None
        close = exchange.close or self._relay.stopping
        if not self.body_done or (close and self._buffer):
            self._linger()
        elif close or self.is_last_request:
            self._close()
        else:
            self.deadline = self._relay.now + self._relay.options.idle_s
            if self._buffer:
                # Not at once: a thousand pipelined requests would be a thousand calls deep.
                self._relay.loop.call_soon(self._next)

    def fail(self, status: int, fault: Fault) -> None:
        """The current request cannot be served: say so, or, in the midst of a response, break it off."""
        self._relay.count(fault)
        exchange = self.exchange
        if exchange is None:
            return
        if not exchange.replied:
            self.answer(status)
            return
        self._end_exchange()
        exchange.abandon()
        if exchange.close:
            # The end of the connection may be all that tells the end of this body, so let it look like a break.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.transport.abort()
        else:
            self._close()

    def answer(self, status: int) -> None:
        """Answer the current request ourselves."""
        exchange = self.exchange
        assert exchange is not None
        exchange.abandon()
        exchange.begin_response(0)
        relay = self._relay
        self.transport.write(own_response(status, exchange.close, relay.hsts, relay.options.error_pages, exchange.head))
        self.response_done()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way here, not even the beginning of a request."""
        return self.exchange is None and not self._buffer and not self._lingering

    def close_if_idle(self) -> None:
        """End a connection on which nothing is under way: the director stops, or needs the room."""
        if self.is_idle:
            self._close()

    def _refuse(self, status: int, fault: Fault) -> None:
        """Answer what is no request, and read no more: where the next one would begin, nobody knows."""
        self._relay.count(fault)
        self.transport.write(own_response(status, True, self._relay.hsts, self._relay.options.error_pages))
        self._buffer.clear()
        self._linger()

    def _close(self) -> None:
        self._lingering = True
        self.deadline = self._relay.now + self._relay.options.linger_s
        self.transport.close()

    def _linger(self) -> None:
        """End our side, and swallow the client's for a while: a reset could destroy the answer (RFC 9112, 9.6)."""
        if not self.transport.can_write_eof() or self.half_closed:
            self._close()
            return
        self._lingering = True
        self._buffer.clear()
        self.deadline = self._relay.now + self._relay.options.linger_s
        self._unpause(self._pauses)
        self.transport.write_eof()

    # Time-outs

    def expired(self, now: float) -> None:
        """The deadline has passed: whose turn was it?"""
        options, exchange = self._relay.options, self.exchange
        if self._lingering or self.transport.is_closing():
            self.transport.abort()
        elif self.write_paused:
            self._check_stalled_client(now)
        elif exchange is None:
            if self._buffer:
                self._refuse(408, Fault.CLIENT_TIMEOUT)
            else:
                self._close()
        elif exchange.upstream is not None and exchange.upstream.is_holding:
            exchange.upstream.flush_held()
            self.deadline = now + options.between_bytes_s
        elif exchange.is_parked:
            exchange.waited_too_long()
        elif not self.body_done and not self._pauses & _BODY_HELD:
            self.fail(408, Fault.CLIENT_TIMEOUT)
        else:
            exchange.timed_out()

    def _check_stalled_client(self, now: float) -> None:
        """A client that takes a response slowly is fine; one that takes nothing is not."""
        waiting = self.transport.get_write_buffer_size()
        if waiting >= self._stalled_bytes:
            self._relay.count(Fault.CLIENT_TIMEOUT)
            self.transport.abort()
        self._stalled_bytes = waiting
        self.deadline = now + self._relay.options.between_bytes_s

    def judge_pace(self, now: float) -> None:
        """A round of the least rates is over: a client that gave or took too little in all of it has to go.

        What waits because a web server takes no more, or has not said 100 Continue, is not the client's fault.
        """
        relay, options, exchange = self._relay, self._relay.options, self.exchange
        if self._lingering:
            return
        size = self.transport.get_write_buffer_size() if self.write_paused else None
        taken = None if size is None or self._paced_size is None else self._paced_size - size
        self._paced_size = size
        comes = exchange is not None and not self.body_done and not self._pauses & _BODY_HELD
        given = self._paced_bytes if self._paced else None
        self._paced, self._paced_bytes = comes, 0
        if taken is not None and taken < options.min_read_rate * options.rate_window_s:
            relay.count(Fault.CLIENT_TOO_SLOW)
            self.transport.abort()
        elif (
            comes
            and exchange is not None
            and not exchange.awaits_continue
            and given is not None
            and given < options.min_body_rate * options.rate_window_s
        ):
            self.fail(408, Fault.CLIENT_TOO_SLOW)
