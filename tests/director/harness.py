"""A director before web servers that do as a test tells them, all on real sockets in one event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer

LONGEST_S = 60.0
"""For whatever is waited for: a busy machine is no fault."""
BUSY_S = 10.0
"""What a busy machine may add to a promised time before a test calls it broken."""
HEALTH = "/.well-known/coatcheck/health"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Received:
    """One request as a web server got it."""

    head: bytes
    body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    def values(self, name: str) -> list[bytes]:
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower().encode()]


Behaviour = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer_ok(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def read_body(request: Received, reader: asyncio.StreamReader) -> bytes:
    if request.values("content-length"):
        return await reader.readexactly(int(request.values("content-length")[0]))
    body = b""
    if request.values("transfer-encoding"):
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    return body


@dataclass
class FakeServer:
    """A web server on a real port; ``behave`` answers each request after its body was read."""

    name: str = "web-1"
    behave: Behaviour = answer_ok
    reads_body: bool = True
    health: bytes | None = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    """``None``: it keeps silent."""
    seen: list[Received] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        counted = False
        try:
            while True:
                request = Received((await reader.readuntil(b"\r\n\r\n"))[:-4])
                if HEALTH.encode() in request.line:
                    if self.health is None:
                        await asyncio.sleep(LONGEST_S)
                    writer.write(self.health or b"")
                    break
                self.connections += not counted
                counted = True
                self.seen.append(request)
                if self.reads_body:
                    request.body = await read_body(request, reader)
                await self.behave(request, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()


class Client:
    """A raw connection to the director."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes) -> Answer:
        self.writer.write(request)
        return await self.answer(head_only=request.startswith(b"HEAD "))

    async def answer(self, *, head_only: bool = False) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
        answer = Answer(head, b"")
        if head_only or answer.status < 200 or answer.status in (204, 304):
            return answer
        if answer.values("content-length"):
            answer.body = await self.reader.readexactly(int(answer.values("content-length")[0]))
        elif answer.values("transfer-encoding"):
            answer.body = await read_body(Received(head), self.reader)
        else:
            answer.body = await self.reader.read()
        return answer

    async def rest(self) -> bytes:
        """All that comes until the end."""
        return await self.reader.read()


@dataclass
class Answer:
    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    def values(self, name: str) -> list[bytes]:
        return Received(self.head).values(name)


@dataclass
class Farm:
    director: EmbeddedDirector
    servers: list[FakeServer]

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(*self.director.address, **options)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def until_healthy(self, names: set[str]) -> None:
        await until(lambda: {s["name"] for s in self.director.status()["servers"] if s["healthy"]} == names)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONGEST_S):
        while not condition():
            await asyncio.sleep(0.005)


async def standstill(count: Callable[[], int]) -> int:
    """Wait until a count of bytes grows no more, and return it: back-pressure has come to an end of its buffers."""
    async with asyncio.timeout(LONGEST_S):
        before = -1
        while (now := count()) != before or not now:
            before = now
            await asyncio.sleep(0.25)
        return now


@asynccontextmanager
async def farm(*servers: FakeServer, listener: socket.socket | None = None, **options: Any) -> AsyncIterator[Farm]:
    """A director, healthy servers already admitted; ``options`` are those of the director."""
    for server in servers:
        await server.start()
    web = tuple(WebServer(s.name, "127.0.0.1", s.port, f"tag-{s.name}") for s in servers)
    director = EmbeddedDirector(DirectorOptions(servers=web, port=0, **options))
    await director.start(listener)
    try:
        running = Farm(director, list(servers))
        await running.until_healthy({s.name for s in servers if s.health and b" 200 " in s.health})
        yield running
    finally:
        await director.stop(0)
        for server in servers:
            await server.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine within the longest time that any may take."""

    async def bounded() -> None:
        async with asyncio.timeout(LONGEST_S):
            await test()

    try:
        import uvloop
    except ImportError:
        asyncio.run(bounded())
    else:
        uvloop.run(bounded())
