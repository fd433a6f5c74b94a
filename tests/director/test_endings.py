"""How a connection ends before a client that is slow, or that still sends: whole, over TLS as without it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import uvloop

from .harness import LONGEST_S, FakeServer, Farm, Received, farm, until
from .test_lifecycle import certificate

SMALL: Final = 8192
"""Buffers of the kernel's, so that what a slow client has not taken stays with the director."""
LINGER_S: Final = 0.2
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """The director's context, and that of browsers which trust it."""
    chain, private = certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return context, ssl.create_default_context(cafile=str(chain))


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, contexts: Contexts) -> Contexts | None:
    return contexts if request.param == "tls" else None


Runner = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(LONGEST_S):
                await test()

        (asyncio.run if request.param == "asyncio" else uvloop.run)(bounded())

    return run


def small(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    return sock


@asynccontextmanager
async def narrow(server: FakeServer, tls: Contexts | None, **options: Any) -> AsyncIterator[Farm]:
    """A director whose sockets hold little."""
    listener = small(socket.socket())
    listener.bind(("127.0.0.1", 0))
    bounds: dict[str, Any] = {"linger_s": LINGER_S, "tick_s": 0.02, **options}
    async with farm(server, listener=listener, tls=tls and tls[0], **bounds) as running:
        yield running


class Browser:
    """A blocking client: what it does not ask for stays with the kernel, and then with the director."""

    def __init__(self, address: tuple[str, int], tls: Contexts | None) -> None:
        self.socket = small(socket.socket())
        self.socket.settimeout(LONGEST_S)
        self.socket.connect(address)
        if tls is not None:
            self.socket = tls[1].wrap_socket(self.socket, server_hostname="127.0.0.1", suppress_ragged_eofs=False)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.socket.sendall, data)

    async def rest(self) -> bytes:
        """All that comes until an end that was meant; one that looks like a break is an error."""
        return await asyncio.to_thread(self._rest)

    def _rest(self) -> bytes:
        came = bytearray()
        while data := self.socket.recv(65_536):
            came += data
        return bytes(came)


@asynccontextmanager
async def browser(running: Farm, tls: Contexts | None) -> AsyncIterator[Browser]:
    client = await asyncio.to_thread(Browser, running.director.address, tls)
    try:
        yield client
    finally:
        client.socket.close()


def answering(head: bytes, body: bytes) -> FakeServer:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body)
        await writer.drain()
        writer.close()

    return FakeServer(behave=behave)


async def until_answered(running: Farm) -> None:
    """The director has had the last of the response."""
    await until(lambda: running.director.status()["requests"] == 1 and running.director.status()["in_flight"] == 0)


@pytest.mark.parametrize("size", [30_000, 90_000])
def test_a_slow_client_gets_the_end_of_its_last_response(tls: Contexts | None, run: Runner, size: int) -> None:
    async def test() -> None:
        body = bytes(range(250)) * (size // 250)
        async with narrow(answering(b"Connection: close\r\n", body), tls) as running, browser(running, tls) as client:
            await client.send(GET)
            await asyncio.sleep(6 * LINGER_S)
            assert (await client.rest()).partition(b"\r\n\r\n")[2] == body
            await until(lambda: running.director.status()["connections"] == 0)

    run(test)


def test_a_client_that_is_refused_while_it_sends_gets_the_whole_answer(tls: Contexts | None, run: Runner) -> None:
    """It sends on for a while, as a browser does that uploads, and looks at the answer only then."""

    async def test() -> None:
        async with narrow(FakeServer(), tls) as running, browser(running, tls) as client:
            await client.send(
                b"POST /.well-known/coatcheck/none HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
            )
            for _ in range(3):
                await client.send(b"x" * 4_000)
                await asyncio.sleep(LINGER_S / 10)
            assert (await client.rest()).startswith(b"HTTP/1.1 404 ")
            await until(lambda: running.director.status()["connections"] == 0)

    run(test)


def test_a_byte_behind_the_last_request_costs_a_slow_client_nothing(contexts: Contexts, run: Runner) -> None:
    """The answer ends the connection, which the client cannot know yet when it sends the next request."""

    async def test() -> None:
        body = b"x" * 60_000
        async with narrow(answering(b"Connection: close\r\n", body), contexts) as running:
            async with browser(running, contexts) as client:
                await client.send(GET)
                await until_answered(running)
                await client.send(GET)
                assert (await client.rest()).partition(b"\r\n\r\n")[2] == body
            await until(lambda: running.director.status()["connections"] == 0)

    run(test)


def test_a_client_that_takes_nothing_of_its_last_response_is_dropped(tls: Contexts | None, run: Runner) -> None:
    async def test() -> None:
        server = answering(b"Connection: close\r\n", b"x" * 60_000)
        async with narrow(server, tls, body_timeout_s=2 * LINGER_S) as running, browser(running, tls) as client:
            await client.send(GET)
            await until_answered(running)
            await until(lambda: running.director.status()["connections"] == 0)
            with pytest.raises(OSError, match=r"reset|violation of protocol"):
                await client.rest()

    run(test)


def test_a_request_in_one_piece_with_the_end_of_the_handshake_is_answered(contexts: Contexts, run: Runner) -> None:
    """It comes before the director has heard that the handshake is over."""

    async def test() -> None:
        async with narrow(FakeServer(), contexts) as running:
            answer = await asyncio.to_thread(ask_in_one_piece, running.director.address, contexts[1])
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"ok")
            await until(lambda: running.director.status()["connections"] == 0)
            assert running.director.status()["handshakes"] == 0

    run(test)


def ask_in_one_piece(address: tuple[str, int], context: ssl.SSLContext) -> bytes:
    """The last bytes of the handshake and a request leave at once."""
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(coming, going, server_hostname="127.0.0.1")
    with socket.create_connection(address, LONGEST_S) as sock:
        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(going.read())
                data = sock.recv(65_536)
                assert data, "the connection ended within its handshake"
                coming.write(data)
            else:
                break
        session.write(GET)
        sock.sendall(going.read())
        answer = b""
        while not answer.endswith(b"ok"):
            try:
                answer += session.read(65_536)
            except ssl.SSLWantReadError:
                data = sock.recv(65_536)
                assert data, "the connection ended without an answer"
                coming.write(data)
        return answer
