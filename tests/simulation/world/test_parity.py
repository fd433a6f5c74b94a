"""The simulated wire under asyncio's loop behaves as the kernel's: the same conversations, on loopback and in a world.

What a protocol is told, in which order, and what its transport answers must be the same; only time differs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck.peers.credentials import check_same_user
from coatcheck.peers.dial import connect_unix
from coatcheck.simulation.world.sockets import SimulatedSocket
from coatcheck.simulation.world.world import SimulatedWorld

Log = list[Any]
BIG = 20_000_000
"""More than the kernel and the transport keep between two ends."""


class Told(asyncio.Protocol):
    """Writes down what it is told; data that comes in pieces is one."""

    def __init__(self, log: Log, on_data: Callable[[Told, bytes], None] = lambda told, data: None) -> None:
        self.log = log
        self.on_data = on_data
        self.size = 0
        self.keep_open = False
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.log.append(("made", transport.is_closing(), transport.is_reading()))

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        if self.log[-1][0] != "data":
            self.log.append(("data", type(data).__name__))
        self.on_data(self, data)

    def eof_received(self) -> bool:
        self.log.append(("eof", self.size, self.transport.is_closing()))
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append(("lost", type(exc).__name__, self.size, self.transport.is_closing()))
        self.lost.set_result(None)

    def pause_writing(self) -> None:
        self.log.append(("pause", self.transport.get_write_buffer_size() > 0))

    def resume_writing(self) -> None:
        self.log.append(("resume", self.transport.get_write_buffer_size()))


class Buffered(asyncio.BufferedProtocol):
    def __init__(self, log: Log) -> None:
        self.log = log
        self.buffer = bytearray(64)
        self.got = b""

    def connection_made(self, transport: Any) -> None:
        self.log.append("made")

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.log.append(("eof", self.got))

    def connection_lost(self, exc: Exception | None) -> None:
        self.log.append(("lost", exc))


Serve = Callable[[Log], asyncio.BaseProtocol]
Talk = Callable[[str, int, Log], Awaitable[None]]
SCRIPTS: dict[str, tuple[Serve, Talk]] = {}


def script(serve: Serve) -> Callable[[Talk], Talk]:
    def note(talk: Talk) -> Talk:
        SCRIPTS[talk.__name__] = (serve, talk)
        return talk

    return note


def echo(log: Log) -> Told:
    return Told(log, lambda told, data: told.transport.write(data))


def silent(log: Log) -> Told:
    return Told(log)


def says_no(log: Log) -> Told:
    def answer(told: Told, data: bytes) -> None:
        told.transport.write(b"no")
        told.transport.close()
        told.transport.write(b"and nothing more" * 3)

    return Told(log, answer)


def half_open(log: Log) -> Told:
    told = Told(log)
    told.keep_open = True

    def answer(told: Told, data: bytes) -> None:
        if told.size == 4:
            asyncio.get_running_loop().call_later(0.1, told.transport.write, b"still here")
            asyncio.get_running_loop().call_later(0.2, told.transport.close)

    told.on_data = answer
    return told


def slow_reader(log: Log) -> Told:
    def pause(told: Told, data: bytes) -> None:
        if told.size == len(data):
            told.transport.pause_reading()
            told.log.append(("reading", told.transport.is_reading()))
            asyncio.get_running_loop().call_later(0.3, told.transport.resume_reading)

    return Told(log, pause)


def only_who_speaks(log: Log) -> Told:
    def note(told: Told, data: bytes) -> None:
        log.extend(told.log)
        told.log = log

    return Told([], note)


def hangs_up(log: Log) -> Told:
    return Told(log, lambda told, data: told.transport.abort())


def buffered(log: Log) -> Buffered:
    return Buffered(log)


async def connected(host: str, port: int, log: Log, **more: Any) -> Told:
    _, told = await asyncio.get_running_loop().create_connection(lambda: Told(log, **more), host, port)
    log.append("connected")
    return told


@script(echo)
async def client_closes(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"one")
    told.transport.writelines([b"two", b"three"])
    await asyncio.sleep(0.2)
    told.transport.close()
    told.transport.close()
    log.append(("closing", told.transport.is_closing()))
    await told.lost


@script(says_no)
async def server_closes(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"x")
    await told.lost


@script(silent)
async def client_aborts(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"x")
    await asyncio.sleep(0.1)
    told.transport.abort()
    told.transport.write(b"into the void")
    await told.lost


@script(echo)
async def aborts_with_something_unread(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.pause_reading()
    told.transport.write(b"x")
    await asyncio.sleep(0.2)
    told.transport.abort()
    await told.lost


@script(half_open)
async def half_closed(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"four")
    log.append(("eof possible", told.transport.can_write_eof()))
    told.transport.write_eof()
    with pytest.raises(RuntimeError):
        told.transport.write(b"too late")
    await told.lost


@script(slow_reader)
async def blocked_reader(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.set_write_buffer_limits(high=100_000)
    log.append(("limits", told.transport.get_write_buffer_limits()))
    told.transport.write(b"a")
    await asyncio.sleep(0.1)
    for _ in range(10):
        told.transport.write(b"b" * (BIG // 10))
    await asyncio.sleep(0.6)
    told.transport.close()
    await told.lost


@script(slow_reader)
async def closes_with_much_unsent(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"a")
    await asyncio.sleep(0.1)
    told.transport.write(b"b" * BIG)
    told.transport.close()
    log.append(("lost at once", told.lost.done()))
    await told.lost


@script(hangs_up)
async def writes_to_who_hung_up(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.keep_open = True
    told.transport.write(b"x")
    await asyncio.sleep(0.2)
    told.transport.write(b"y")
    await asyncio.sleep(0.2)
    told.transport.write(b"z")
    await told.lost


@script(buffered)
async def into_a_buffer(host: str, port: int, log: Log) -> None:
    told = await connected(host, port, log)
    told.transport.write(b"0123456789" * 30)
    await asyncio.sleep(0.1)
    told.transport.close()
    await told.lost


@script(echo)
async def with_bare_sockets(host: str, port: int, log: Log) -> None:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.setblocking(False)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
        with pytest.raises(OSError, match=r"not connected|Broken pipe"):
            sock.send(b"too early")
        await loop.sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        log.append(("peer", sock.getpeername() == (host, port), sock.getsockname()[1] > 0, sock.gettimeout()))
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        await loop.sock_sendall(sock, b"hello")
        got = b""
        while len(got) < 5:
            got += await loop.sock_recv(sock, 3)
        log.append(got)
        sock.shutdown(socket.SHUT_WR)
        log.append(await loop.sock_recv(sock, 3))
        with pytest.raises(BrokenPipeError):
            sock.send(b"too late")
    log.append(sock.fileno())


@script(silent)
async def nobody_listens(host: str, port: int, log: Log) -> None:
    for wrong in (port + 1, 1):
        try:
            await asyncio.get_running_loop().create_connection(lambda: Told(log), host, wrong)
        except OSError as refused:
            log.append(type(refused).__name__)


@script(only_who_speaks)
async def changes_its_mind(host: str, port: int, log: Log) -> None:
    task = asyncio.ensure_future(connected(host, port, log))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    log.append(("cancelled", task.cancelled()))
    log.clear()  # whether it was connected by then is a matter of time
    told = await connected(host, port, log)
    told.transport.write(b"x")
    await asyncio.sleep(0.1)
    told.transport.close()
    await told.lost


@script(silent)
async def a_port_that_is_taken(host: str, port: int, log: Log) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Told(log), host, 0)
    taken = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="in use"):
        await loop.create_server(lambda: Told(log), host, taken)
    server.close()
    await server.wait_closed()
    again = await loop.create_server(lambda: Told(log), host, taken)
    log.append(("serving", again.is_serving(), taken > 0))
    again.close()
    await asyncio.sleep(0)


async def on_loopback(serve: Serve, talk: Talk) -> tuple[Log, Log]:
    theirs, ours = [], []
    server = await asyncio.get_running_loop().create_server(lambda: serve(theirs), "127.0.0.1", 0)
    await talk("127.0.0.1", server.sockets[0].getsockname()[1], ours)
    await asyncio.sleep(0.6)
    server.close()
    return theirs, ours


def in_a_world(serve: Serve, talk: Talk, seed: object = 1, fragmentation: float = 0.0) -> tuple[Log, Log]:
    theirs, ours, complaints = [], [], []
    world = SimulatedWorld(seed, lambda text, error: complaints.append((text, error)))
    world.wire.fragmentation = fragmentation
    with world.running():
        one, other = world.machine("server"), world.machine("client")

        async def listen() -> None:
            host = "127.0.0.1" if talk is SCRIPTS["a_port_that_is_taken"][1] else one.address
            await asyncio.get_running_loop().create_server(lambda: serve(theirs), host, 700)

        listening = one.start(listen())
        world.run(1, listening.done)
        listening.result()
        done = other.start(talk(one.address, 700, ours))
        world.run(20, done.done)
        done.result()
        world.run(0.6)
    assert complaints == []
    return theirs, ours


def settled(log: Log) -> Log:
    """Without repeats: how often a writer is held up depends on how fast the reader is."""
    kept: Log = []
    for entry in log:
        if isinstance(entry, tuple) and entry[0] in ("pause", "resume"):
            entry = (entry[0],)
            if entry in kept:
                continue
        kept.append(entry)
    return kept


@pytest.mark.parametrize("name", sorted(SCRIPTS))
@pytest.mark.parametrize("fragmentation", [0.0, 0.5])
def test_the_same_conversation(name: str, fragmentation: float) -> None:
    serve, talk = SCRIPTS[name]
    simulated = in_a_world(serve, talk, fragmentation=fragmentation)
    real = asyncio.run(on_loopback(serve, talk))
    assert [settled(log) for log in simulated] == [settled(log) for log in real]


MUCH = {"blocked_reader", "closes_with_much_unsent"}


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - MUCH))
def test_a_world_repeats_itself(name: str) -> None:
    serve, talk = SCRIPTS[name]
    assert in_a_world(serve, talk, 7, 0.3) == in_a_world(serve, talk, 7, 0.3)


async def over_a_unix_socket(path: str, log: Log) -> None:
    loop = asyncio.get_running_loop()
    try:
        await connect_unix(path)
    except OSError as refused:
        log.append(isinstance(refused, (ConnectionRefusedError, FileNotFoundError)))
    server = await loop.create_unix_server(lambda: echo(log), path)
    sock = await connect_unix(path)
    check_same_user(sock)
    mine: Log = []
    transport, told = await loop.create_unix_connection(lambda: Told(mine), sock=sock)
    transport.write(b"x")
    await asyncio.sleep(0.1)
    transport.close()
    await told.lost
    await asyncio.sleep(0.1)
    server.close()
    log.extend(mine)


def test_unix_sockets(tmp_path: Path) -> None:
    real: Log = []
    asyncio.run(over_a_unix_socket(str(tmp_path / "s"), real))
    simulated: Log = []
    world = SimulatedWorld(1, lambda text, error: pytest.fail(f"{text} {error!r}"))
    with world.running():
        done = world.machine("one").start(over_a_unix_socket(str(tmp_path / "s"), simulated))
        world.run(5, done.done)
        done.result()
    assert simulated == real


def test_the_surface_of_a_simulated_socket() -> None:
    """Each of its methods is one of the real ones', called in the same way."""
    own = {"abandon", "is_readable", "is_silent", "is_writable", "take", "host", "peer", "clear_at", "held"}
    public = {name for name in vars(SimulatedSocket) if not name.startswith("_")} - own
    assert public <= set(dir(socket.socket))
    assert {"accept", "bind", "close", "connect", "fileno", "getpeername", "getsockname", "getsockopt", "gettimeout",
            "listen", "recv", "recv_into", "send", "setblocking", "setsockopt", "shutdown"} <= public  # fmt: skip
