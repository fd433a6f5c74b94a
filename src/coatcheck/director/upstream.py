"""Connections to web servers: the pool, and one connection that finds the end of each response."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Final, cast

from coatcheck.director.options import WebServer
from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import CHUNKED, BadHead, HeadFault
from coatcheck.director.rules.response_head import ResponseHead, parse_response_head
from coatcheck.director.rules.routing import Health, ServerState

if TYPE_CHECKING:
    from coatcheck.director.exchange import Exchange
    from coatcheck.director.relay import Relay

_HEAD, _LENGTH, _CHUNKED, _UNTIL_CLOSE = range(4)
_MAX_INFORMATIONAL: Final = 16
_HSTS_NAME: Final = b"\r\nstrict-transport-security:"
_NO_BODY_STATUSES: Final = frozenset({204, 304})


class UpstreamPool:
    """One web server's connections; those in no use wait here, the latest used first."""

    __slots__ = ("answers", "idle", "relay", "server", "state")

    def __init__(self, relay: Relay, server: WebServer, state: ServerState) -> None:
        self.relay = relay
        self.server = server
        self.state = state
        self.idle: list[Upstream] = []
        self.answers = 0
        """How often bytes came from this server: proof of life for the health checks."""

    def take(self, *, certain: bool) -> Upstream | None:
        """An open connection; ``certain`` also asks the kernel, for a request that must not be sent twice.

        The web server may close a connection at any moment. The event loop tells us, but only in its next round;
        the kernel knows at once. What is left is the time that the close itself is under way.
        """
        idle = self.idle
        while idle:
            upstream = idle.pop()
            upstream.is_idle = False
            if not certain or upstream.is_quiet():
                upstream.is_reused = True
                return upstream
            upstream.transport.close()
        return None

    def release(self, upstream: Upstream) -> None:
        """Keep a connection whose response has ended."""
        if len(self.idle) >= self.relay.options.max_idle_upstream or self.relay.stopping or upstream.is_gone:
            upstream.transport.close()
            return
        upstream.is_idle = True
        upstream.idle_since = self.relay.now
        self.idle.append(upstream)

    def close_idle(self, before: float) -> None:
        """Close what has not been used since ``before``; the list is in the order of release."""
        while self.idle and self.idle[0].idle_since <= before:
            upstream = self.idle.pop(0)
            upstream.is_idle = False
            upstream.transport.close()


class Upstream(asyncio.Protocol):
    """One connection to a web server."""

    __slots__ = (
        "_buffer", "_chunks", "_dechunk", "_framing", "_held", "_informational", "_keep_alive", "_remaining",
        "exchange", "idle_since", "is_gone", "is_idle", "is_reused", "pool", "read_paused", "relay", "transport",
        "write_paused",
    )  # fmt: skip

    def __init__(self, relay: Relay, pool: UpstreamPool) -> None:
        self.relay = relay
        self.pool = pool
        self.transport = cast(asyncio.Transport, None)
        self.exchange: Exchange | None = None
        self.is_idle = self.is_reused = self.is_gone = False
        self.read_paused = self.write_paused = False
        self.idle_since = 0.0
        self._framing = _HEAD
        self._buffer = b""
        self._remaining = 0
        self._chunks: ChunkedReader | None = None
        self._dechunk = False
        self._keep_alive = False
        self._held: list[bytes] | None = None
        self._informational = 0

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(self.relay.options.buffer_bytes)

    def is_quiet(self) -> bool:
        """Whether the kernel has neither bytes nor an end of stream for us."""
        if self.transport.is_closing():
            return False
        descriptor = self.transport.get_extra_info("socket").fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.client.hold_body()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.client.release_body()

    def pause_reading(self) -> None:
        """The client does not take what we read: read no more."""
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """The client takes bytes again."""
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()

    def eof_received(self) -> bool | None:
        self._gone(None)
        return None

    def connection_lost(self, error: Exception | None) -> None:
        self._gone(error)

    def _gone(self, error: Exception | None) -> None:
        self.is_gone = True
        if self.is_idle:
            self.is_idle = False
            self.pool.idle.remove(self)
        exchange = self.exchange
        if exchange is None:
            return
        if self._framing == _UNTIL_CLOSE and error is None:
            self._finish()
            return
        self.exchange = None
        exchange.lost(self, reset=isinstance(error, ConnectionResetError))

    def drop(self) -> None:
        """End the connection in the midst of an exchange: what would still come on it concerns nobody."""
        self.exchange = None
        self.transport.abort()

    # Responses

    def data_received(self, data: bytes) -> None:
        pool = self.pool
        pool.answers += 1
        if pool.state.health is Health.BUSY:
            self.relay.heard(pool.state)
        exchange = self.exchange
        if exchange is None:
            # Nobody asked: whatever this is, it must not become the answer to the next request.
            self.transport.close()
            return
        framing = self._framing
        if framing == _HEAD:
            try:
                self._take_head(exchange, self._buffer + data if self._buffer else data)
            except BadHead:
                exchange.bad_response(self)
            return
        exchange.client.deadline = self.relay.now + self.relay.options.between_bytes_s
        if framing == _LENGTH:
            self._take_length(exchange, data)
        elif framing == _CHUNKED:
            try:
                self._take_chunks(exchange, data)
            except BadHead:
                exchange.bad_response(self)
        else:
            exchange.client.transport.write(data)

    def _take_head(self, exchange: Exchange, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        options = self.relay.options
        if end < 0 or end > options.max_response_head_bytes:
            if len(data) > options.max_response_head_bytes:
                raise BadHead(HeadFault.TOO_LARGE, 502)
            self._buffer = data
            return
        self._buffer = b""
        head = parse_response_head(data[:end], options.max_headers * 2)
        end += 4
        status = head.status
        if status < 200:
            self._take_informational(exchange, head, data[end:])
            return
        length = 0 if exchange.head.method == b"HEAD" or status in _NO_BODY_STATUSES else head.length
        close = exchange.begin_response(length)
        self._keep_alive = head.keep_alive
        plain = head.as_sent and not close and not exchange.fields.http10 and not self.relay.hsts
        if plain and length == len(data) - end:
            exchange.replied = True
            exchange.client.transport.write(data)
            self._finish()
            return
        start = data[:end] if plain else _rebuilt(head, exchange, length, close=close)
        self._begin_body(exchange, start, length, data[end:])

    def _begin_body(self, exchange: Exchange, start: bytes, length: int, body: bytes) -> None:
        options = self.relay.options
        client = exchange.client
        if length >= 0:
            self._framing, self._remaining = _LENGTH, length
            if len(body) < length <= options.held_response_bytes:
                self._held = [start]
                client.deadline = self.relay.now + options.held_response_s
            else:
                exchange.replied = True
                client.transport.write(start)
                client.deadline = self.relay.now + options.between_bytes_s
            self._take_length(exchange, body)
            return
        exchange.replied = True
        client.transport.write(start)
        client.deadline = self.relay.now + options.between_bytes_s
        if length == CHUNKED:
            self._framing, self._chunks, self._dechunk = _CHUNKED, ChunkedReader(), exchange.fields.http10
            self._take_chunks(exchange, body)
        else:
            self._framing = _UNTIL_CLOSE
            client.transport.write(body)

    def _take_length(self, exchange: Exchange, data: bytes) -> None:
        surplus = len(data) - self._remaining
        if surplus > 0:
            # More than was announced: the rest must not become the next response.
            data = data[: self._remaining]
            self._keep_alive = False
        self._remaining -= len(data)
        if self._held is None:
            if data:
                exchange.client.transport.write(data)
        else:
            self._held.append(data)
        if not self._remaining:
            self.flush_held()
            self._finish()

    def _take_chunks(self, exchange: Exchange, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        payload = chunks.feed(data)
        if chunks.rest:
            self._keep_alive = False
            data = data[: -len(chunks.rest)]
        if self._dechunk:
            data = b"".join(payload)
        if data:
            exchange.client.transport.write(data)
        if chunks.done:
            self._finish()

    def _take_informational(self, exchange: Exchange, head: ResponseHead, rest: bytes) -> None:
        self._informational += 1
        if self._informational > _MAX_INFORMATIONAL:
            raise BadHead(HeadFault.TOO_LARGE, 502)
        if head.status == 101:
            if not (exchange.fields.websocket and head.websocket):
                raise BadHead(HeadFault.STATUS_LINE, 502)
            self.exchange = None
            exchange.open_tunnel(self, _rebuilt(head, exchange, 0, close=False), rest)
            return
        exchange.informational(head.status, _rebuilt(head, exchange, 0, close=False))
        if rest:
            self._take_head(exchange, rest)

    @property
    def is_holding(self) -> bool:
        """Whether a begun response has not left yet."""
        return self._held is not None

    def flush_held(self) -> None:
        """Let a held response go; from here on the request cannot be sent again."""
        if self._held is not None and self.exchange is not None:
            self.exchange.replied = True
            self.exchange.client.transport.write(b"".join(self._held))
        self._held = None

    def _finish(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        self.exchange = None
        self._framing = _HEAD
        self._chunks = None
        self._informational = 0
        if self.read_paused:
            self.resume_reading()
        exchange.release_server()
        client = exchange.client
        if self._keep_alive and client.body_done:
            self.pool.release(self)
        else:
            self.transport.close()
        client.response_done()


def _rebuilt(head: ResponseHead, exchange: Exchange, length: int, *, close: bool) -> bytes:
    """The response head as our own: our version, no hop-by-hop headers but ours (RFC 9110, 7.6.1)."""
    # Without anything special, the "line" is the whole head.
    lines = [b"HTTP/1.1 " + head.status_line[9:], *head.lines]
    http10 = exchange.fields.http10
    if http10 and length == CHUNKED:
        lines = [line for line in lines if not line.lower().startswith(b"transfer-encoding:")]
    if head.status == 101:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    elif head.status >= 200 and close:
        lines.append(b"Connection: close")
    elif head.status >= 200 and http10:
        lines.append(b"Connection: keep-alive")
    rebuilt = b"\r\n".join(lines)
    hsts = exchange.relay.hsts
    if hsts and head.status >= 200 and _HSTS_NAME not in rebuilt.lower():
        rebuilt += b"\r\n" + hsts
    return rebuilt + b"\r\n\r\n"
