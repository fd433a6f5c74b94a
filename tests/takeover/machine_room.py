"""Processes without a kernel: event loops that a test turns, and connections of which it delivers any beginning.

What was written and fits into the connection arrives, whoever dies, as with a kernel; what did not fit dies with its
writer. A peer that is gone is noticed by a write, and then what it left is not read by the event loop any more.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

_descriptors = itertools.count(1_000_000)
ends: dict[int, End] = {}
"""By their descriptors."""


class Turn:
    """A callback that waits for its turn."""

    def __init__(self, at: float, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.at = at
        self.call = call
        self.arguments = arguments
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The time of all processes."""

    now = 1000.0


class Loop:
    """The part of an event loop that the shells use."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: list[Turn] = []
        self._later: list[Turn] = []

    def time(self) -> float:
        return self._clock.now

    def call_soon(self, call: Callable[..., object], *arguments: object) -> Turn:
        self._ready.append(Turn(0.0, call, arguments))
        return self._ready[-1]

    def call_later(self, delay: float, call: Callable[..., object], *arguments: object) -> Turn:
        self._later.append(Turn(self._clock.now + delay, call, arguments))
        return self._later[-1]

    def turn(self) -> bool:
        """One round; answers whether there was anything to do."""
        due = [turn for turn in self._later if turn.at <= self._clock.now]
        self._later = [turn for turn in self._later if turn.at > self._clock.now and not turn.cancelled]
        ready, self._ready = self._ready + due, []
        for turn in ready:
            if not turn.cancelled:
                turn.call(*turn.arguments)
        return bool(ready)


class Process:
    """Whatever dies at once."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.loop = Loop(clock)
        self.alive = True
        self.ends: list[End] = []

    def kill(self) -> None:
        self.alive = False
        for end in list(self.ends):
            end.die()


class Wire:
    """One direction of a connection: what the kernel holds of it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue = bytearray()
        self.ended = False
        """Nothing more comes."""
        self.deaf = False
        """Nobody reads any more: a write is an error."""
        self.accepted: Callable[[bytes], None] = lambda data: None

    def accept(self, data: bytes) -> int:
        size = min(len(data), self.capacity - len(self.queue))
        self.queue += data[:size]
        self.accepted(data[:size])
        return size


class Socket:
    """What the shells do with one besides."""

    def __init__(self, end: End) -> None:
        self._descriptor = next(_descriptors)
        ends[self._descriptor] = end

    def fileno(self) -> int:
        return self._descriptor

    def setsockopt(self, *arguments: object) -> None:
        pass

    def shutdown(self, how: int) -> None:
        ends[self._descriptor].abort()


class End:
    """A transport: one end of a connection, in one process."""

    def __init__(self, process: Process, incoming: Wire, outgoing: Wire) -> None:
        self.process = process
        self._in = incoming
        self._out = outgoing
        self._protocol = cast(asyncio.Protocol, None)
        self._buffer = bytearray()
        self._high, self._low = 64 * 1024, 16 * 1024
        self._full = self._paused = self._eof = False
        self.is_over = self._closing = False
        self._socket = Socket(self)
        process.ends.append(self)

    def begin(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(cast(asyncio.Transport, self))

    # What the test does with it

    def read_some(self, size: int) -> bool:
        """Let the protocol have so many bytes, or the end; answers whether there was anything."""
        if self._paused or self._closing or not self.process.alive:
            return False
        if self._in.queue:
            data = bytes(self._in.queue[:size])
            del self._in.queue[:size]
            self._protocol.data_received(data)
            return True
        if self._in.ended and not self._eof:
            self._eof = True
            if not self._protocol.eof_received():
                self.close()
            return True
        return False

    def write_some(self) -> bool:
        """Send what waits."""
        if self._buffer and not self._out.deaf and self.process.alive:
            sent = self._out.accept(bytes(self._buffer))
            del self._buffer[:sent]
            if self._full and len(self._buffer) <= self._low:
                self._full = False
                self._protocol.resume_writing()
            if not self._buffer and self._closing:
                self._lost(None)
            return sent > 0
        if self._buffer and self._out.deaf:
            self._broken()
            return True
        return False

    def die(self) -> None:
        """Its process ends: what the kernel has arrives, and nothing else."""
        self._buffer.clear()
        self._out.ended = True
        self._in.deaf = True
        self._in.queue.clear()
        self.forget()

    def forget(self) -> None:
        """It is over: nothing of it is kept."""
        if ends.pop(self._socket.fileno(), None) is not None:
            self.process.ends.remove(self)

    # What a transport does

    def write(self, data: bytes) -> None:
        if self._closing and self.is_over:
            return
        if self._out.deaf:
            self._broken()
            return
        sent = 0 if self._buffer else self._out.accept(data)
        self._buffer += data[sent:]
        if len(self._buffer) > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def write_now(self, data: bytes) -> int:
        """What ``os.write`` does."""
        if self._out.deaf:
            raise BrokenPipeError
        sent = self._out.accept(data)
        if not sent:
            raise BlockingIOError
        return sent

    def read_now(self, size: int) -> bytes:
        """What ``os.read`` does."""
        if not self._in.queue:
            if self._in.ended:
                return b""
            raise BlockingIOError
        data = bytes(self._in.queue[:size])
        del self._in.queue[:size]
        return data

    def _broken(self) -> None:
        self._buffer.clear()
        self._closing = True
        self._lost(BrokenPipeError())

    def _lost(self, error: Exception | None) -> None:
        if not self.is_over:
            self.is_over = True
            self.process.loop.call_soon(self._say_lost, error)

    def _say_lost(self, error: Exception | None) -> None:
        protocol, self._protocol = self._protocol, cast(asyncio.Protocol, None)
        protocol.connection_lost(error)
        self._out.ended = True
        self._in.deaf = True
        self._in.queue.clear()
        self.forget()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._lost(None)

    def abort(self) -> None:
        self._closing = True
        self._buffer.clear()
        self._lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._out.ended = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default


class Kernel:
    """In the place of ``os`` where descriptors are written or read without the event loop."""

    @staticmethod
    def write(descriptor: int, data: bytes) -> int:
        return ends[descriptor].write_now(data)

    @staticmethod
    def read(descriptor: int, size: int) -> bytes:
        return ends[descriptor].read_now(size)

    @staticmethod
    def urandom(size: int) -> bytes:
        return bytes(size)


def joined(one: Process, other: Process, capacity: int) -> tuple[End, End]:
    """A connection between two processes."""
    there, back = Wire(capacity), Wire(capacity)
    return End(one, back, there), End(other, there, back)
