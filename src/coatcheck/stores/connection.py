"""One pipelined RESP connection: what is issued in one tick of the loop leaves in one write.

The hot path of every networked store, so it counts nanoseconds: one deque of reply callbacks, one
timestamp per write (not per call), and no futures.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis

from coatcheck.replication.entry import MAX_ENTRY_BYTES
from coatcheck.stores.port import Unreachable

logger = logging.getLogger("coatcheck.stores")

MAX_OUTSTANDING_CALLS: Final = 16_384
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""What a peer that does not read may make us keep; above it calls are answered unreachable at once."""
FLUSH_NOW_BYTES: Final = 256 * 1024
MAX_REPLY_BYTES: Final = MAX_ENTRY_BYTES + 1024 * 1024
"""A reply that grows beyond this (an entry, or a page of keys) is no reply of a session server."""

Sink = Callable[[Any], None]
"""Takes the reply as hiredis parsed it, or :class:`Unreachable`."""

CALLBACK_FAILED: Final = "a reply callback failed"
"""Logged, no more: a caller's fault must not cost the other callers their replies."""
_BUSY: Final = Unreachable("too many calls are outstanding")
_MORE: Final = object()


class Owner(Protocol):
    """Who is told what happens to a connection."""

    def lost(self, connection: Connection, why: str) -> None:
        """The connection is gone; its calls have not been answered yet."""
        ...

    def pushed(self, channel: bytes, message: bytes) -> None:
        """A published message has arrived."""
        ...


class Connection(asyncio.Protocol):
    """A connection and the calls that wait for it, in order.

    Once lost it is never used again: so no late reply can be taken for the reply of another call.
    """

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._sinks: deque[Sink] = deque()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._full = False
        self._issued = 0
        self._writes: deque[tuple[int, float]] = deque()
        self._partial_bytes = 0
        self.lost = False
        self.idle_since = loop.time()

    def call(self, request: bytes, sink: Sink) -> None:
        """Send one request; ``sink`` gets its reply, exactly once."""
        sinks = self._sinks
        if self._full or len(sinks) >= MAX_OUTSTANDING_CALLS:
            sink(_BUSY)
            return
        sinks.append(sink)
        self._out.append(request)
        self._out_bytes += len(request)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        elif self._out_bytes > FLUSH_NOW_BYTES:
            self._flush()

    @property
    def outstanding(self) -> int:
        return len(self._sinks)

    def oldest_call_at(self) -> float | None:
        """When the oldest call without a reply was written, on the loop's clock."""
        answered = self._issued + len(self._out) - len(self._sinks)
        writes = self._writes
        while writes and writes[0][0] <= answered:
            writes.popleft()
        return writes[0][1] if writes else None

    def drop(self, why: str) -> None:
        """Give the connection up: tell the owner, then answer every outstanding call as unreachable."""
        if self.lost:
            return
        self.lost = True
        self._full = True
        if self._transport is not None:
            self._transport.abort()
        self._owner.lost(self, why)
        sinks, self._sinks = self._sinks, deque()
        self._out.clear()
        answer = Unreachable(why)
        for sink in sinks:
            try:
                sink(answer)
            except Exception:
                logger.exception(CALLBACK_FAILED)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        if self.lost:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        gets, sinks = self._reader.gets, self._sinks
        answered = False
        try:
            self._reader.feed(data)
            while not self.lost and (reply := gets()) is not _MORE:
                answered = True
                if type(reply) is hiredis.PushNotification and not self._confirms(reply):
                    continue
                if not sinks:
                    self.drop("a reply came that nobody asked for")
                    return
                try:
                    sinks.popleft()(reply)
                except Exception:
                    logger.exception(CALLBACK_FAILED)
        except hiredis.ProtocolError as wrong:
            self.drop(f"not RESP: {wrong}")
            return
        self._partial_bytes = len(data) if answered else self._partial_bytes + len(data)
        if self._partial_bytes > MAX_REPLY_BYTES:
            self.drop("a reply is too large")

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(f"connection lost: {exc}" if exc is not None else "connection closed by the server")

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = self.lost

    def _flush(self) -> None:
        self._flush_due = False
        out = self._out
        if not out or self._transport is None or self.lost:
            return
        self._issued += len(out)
        now = self._loop.time()
        self._writes.append((self._issued, now))
        self.idle_since = now
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()
        self._out_bytes = 0

    def _confirms(self, push: Any) -> bool:
        """Whether a push is the reply to our SUBSCRIBE; messages are handed on.

        Each SUBSCRIBE names one channel and is confirmed (or refused by an error) in its turn, so it
        takes its place among the calls.
        """
        if push and push[0] == b"subscribe":
            return True
        if len(push) == 3 and push[0] == b"message":
            self._owner.pushed(push[1], push[2])
        return False
