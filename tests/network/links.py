"""TCP links that can be cut: proxies on loopback, in a process of their own, told what to do line by line.

A cut does to bytes what a network does: what was under way waits (the kernel repeats it when the network is back), or
is lost with its connection. ``python -m network.links '{"name": [port, target_host, target_port], ...}'``
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Literal

import msgspec

CHUNK_BYTES = 65_536
MAX_CHUNKS_HELD = 256
"""Of one direction of one connection; then the proxy reads no more, as a full network buffer does."""

HEARTBEAT_S = 0.05
STOOD_STILL_S = 0.25
"""A heartbeat that comes so much too late: the machine had no time for the links, and none carried anything."""

Way = Literal["up", "down"]
"""``up``: from who connects to who listens."""
WAYS: tuple[Way, ...] = ("up", "down")


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a link is to do.

    ``hold``: the ways in ``ways`` carry nothing more. ``delay``: everything takes ``seconds`` longer. ``refuse``: end
    all connections and refuse new ones. ``reset``: end all connections, now. ``half``: the listening side's ends are
    closed while the connecting side hears nothing of it. ``heal``: all is well again; what was held arrives late,
    unless ``lose``: then its connections are ended instead. ``look``: nothing; for what its answer tells.
    """

    link: str
    do: Literal["hold", "delay", "refuse", "reset", "half", "heal", "look"]
    ways: tuple[Way, ...] = WAYS
    seconds: float = 0.0
    lose: bool = False


class Link:
    """One listening port and what becomes of the connections through it."""

    def __init__(self, port: int, host: str, target: int) -> None:
        self._port, self._target = port, (host, target)
        self._open = {way: asyncio.Event() for way in WAYS}
        for gate in self._open.values():
            gate.set()
        self._delay_s = 0.0
        self._refusing = False
        self._pairs: set[Pair] = set()
        self.carried = 0
        """Chunks that went through."""

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, backlog=512)

    async def aclose(self) -> None:
        """End all connections."""
        self._server.close()
        self.obey(Order("", "heal"))
        while self._pairs:
            self._each(Pair.end)
            await asyncio.sleep(0.01)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        pair = Pair(self, reader, writer)
        self._pairs.add(pair)
        try:
            await pair.run(self._target)
        finally:
            self._pairs.discard(pair)

    async def gate(self, way: Way) -> None:
        await self._open[way].wait()

    @property
    def delay_s(self) -> float:
        return self._delay_s

    def obey(self, order: Order) -> None:
        if order.do == "hold":
            for way in order.ways:
                self._open[way].clear()
        elif order.do == "delay":
            self._delay_s = order.seconds
        elif order.do == "refuse":
            self._refusing = True
            self._each(Pair.end)
        elif order.do == "reset":
            self._each(Pair.end)
        elif order.do == "half":
            self._each(Pair.deafen)
        elif order.do == "heal":
            self._heal(order.lose)

    def _heal(self, lose: bool) -> None:
        self._refusing, self._delay_s = False, 0.0
        held = any(not gate.is_set() for gate in self._open.values())
        if lose and held:
            self._each(Pair.end)
        for pair in [pair for pair in self._pairs if pair.deaf]:
            pair.end()
        for gate in self._open.values():
            gate.set()

    def _each(self, act: Callable[[Pair], None]) -> None:
        for pair in list(self._pairs):
            act(pair)


class Pair:
    """A connection and its other half."""

    def __init__(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._link = link
        self._near = reader, writer
        self._far: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.deaf = False

    async def run(self, target: tuple[str, int]) -> None:
        near_reader, near_writer = self._near
        try:
            await self._link.gate("up")  # its first packet has to come through
            self._far = far_reader, far_writer = await asyncio.open_connection(*target)
            self._tasks = [
                asyncio.create_task(self._pump(near_reader, far_writer, "up")),
                asyncio.create_task(self._pump(far_reader, near_writer, "down")),
            ]
            await asyncio.wait(self._tasks)
        except OSError:
            """The target refuses: so does the link."""
        finally:
            while self.deaf and not near_writer.transport.is_closing():
                await asyncio.sleep(0.05)  # who connected has not been told
            self.end()

    def end(self) -> None:
        """Both ends are reset, and what was under way is lost."""
        self.deaf = False
        for task in self._tasks:
            task.cancel()
        for end in (self._near, self._far):
            if end is not None:
                _abort(end[1])

    def deafen(self) -> None:
        """The far end is closed; the near one hears nothing, and what it says goes nowhere."""
        self.deaf = True
        for task in self._tasks:
            task.cancel()
        if self._far is not None:
            _abort(self._far[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS_HELD)
        carrier = asyncio.create_task(self._carry(chunks, writer, way))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(CHUNK_BYTES):
                    await chunks.put((loop.time() + self._link.delay_s, data))
            await chunks.put((loop.time() + self._link.delay_s, b""))
            await carrier
        finally:
            carrier.cancel()

    async def _carry(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while True:
                due, data = await chunks.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await self._link.gate(way)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                self._link.carried += 1
                await writer.drain()


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset, so that its other side notices at once."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class State(msgspec.Struct, frozen=True):
    """``carried``: chunks, by link. ``still``: from when to when none carried anything (monotonic seconds), since the
    last answer."""

    carried: dict[str, int]
    still: list[tuple[float, float]]


async def _heartbeat(still: list[tuple[float, float]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        at = loop.time()
        await asyncio.sleep(HEARTBEAT_S)
        if loop.time() - at > HEARTBEAT_S + STOOD_STILL_S:
            still.append((at, loop.time()))


async def main(table: dict[str, tuple[int, str, int]]) -> None:
    links = {name: Link(*row) for name, row in table.items()}
    for link in links.values():
        await link.listen()
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    still: list[tuple[float, float]] = []
    heart = asyncio.create_task(_heartbeat(still))
    print("ready", flush=True)
    while line := await orders.readline():  # ends with whoever started us
        order = msgspec.json.decode(line, type=Order)
        links[order.link].obey(order)
        state = State({name: link.carried for name, link in links.items()}, still[:])
        still.clear()
        print(msgspec.json.encode(state).decode(), flush=True)
    heart.cancel()
    for link in links.values():
        await link.aclose()


class Links:
    """The process of the links, as the test holds it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def start(self, table: dict[str, tuple[int, str, int]], **more: Any) -> None:
        command = [sys.executable, "-m", "network.links", json.dumps(table)]
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, **more)
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n", "the links do not start"

    async def do(self, order: Order) -> State:
        """Obeyed when this returns."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            answer = await self._process.stdout.readline()
        assert answer, "the process of the links has ended"
        return msgspec.json.decode(answer, type=State)

    async def stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._process.wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
