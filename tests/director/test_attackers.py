"""Attackers on real sockets: slow handshakes, slow bodies, readers that do not read, idle WebSockets, one address with
thousands of connections. Each is held to its bound, is counted, and honest browsers go on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coatcheck.tls.peek import peek_hello

from .harness import OK, Client, FakeServer, Farm, Received, farm, read_body, run, until
from .test_lifecycle import UPGRADE, certificate, tunnel_echo

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
HONEST = "127.0.0.1"


def errors(running: Farm, name: str) -> int:
    return int(running.director.status()["errors"][name])


def count(running: Farm, name: str) -> int:
    return int(running.director.status()[name])


@asynccontextmanager
async def comes_from(running: Farm, address: str, **options: Any) -> AsyncIterator[Client]:
    """A connection from an address of the loopback network."""
    async with running.client(local_addr=(address, 0), **options) as client:
        yield client


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The director's context, and that of browsers which trust it."""
    folder: Path = tmp_path_factory.mktemp("tls")
    chain, private = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    return context, ssl.create_default_context(cafile=str(chain))


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@asynccontextmanager
async def look_at_hello(connection: socket.socket) -> AsyncIterator[None]:
    """As a director does that fetches a client's session ahead of its handshake."""
    await peek_hello(asyncio.get_running_loop(), connection)
    yield


@pytest.fixture(params=["at once", "looked at"])
def around(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What happens around each handshake: the bounds are the same."""
    return {"around_handshake": look_at_hello} if request.param == "looked at" else {}


async def is_served(running: Farm, address: str = HONEST, **options: Any) -> bool:
    async with comes_from(running, address, **options) as browser:
        return (await browser.ask(GET)).status == 200


def test_a_connection_counts_before_its_handshake(tls: Contexts, around: dict[str, Any]) -> None:
    async def test() -> None:
        async with farm(FakeServer(), tls=tls[0], **around) as running, AsyncExitStack() as stack:
            for _ in range(5):
                await stack.enter_async_context(running.client())
            await until(lambda: (count(running, "connections"), count(running, "handshakes")) == (5, 5))
            assert await is_served(running, ssl=tls[1])
            await stack.aclose()
            await until(lambda: (count(running, "connections"), count(running, "handshakes")) == (0, 0))
            assert errors(running, "handshake_failed") == 5

    run(test)


def test_slow_handshakes_of_many_addresses_make_room_for_honest_ones(tls: Contexts, around: dict[str, Any]) -> None:
    async def test() -> None:
        # None runs out of time: on a busy machine some would, and would be counted as failed, not as too many.
        bounds = {"max_handshakes": 16, "max_connections": 64, "tls_handshake_timeout_s": 600.0}
        async with farm(FakeServer(), tls=tls[0], **bounds, **around) as running, AsyncExitStack() as stack:
            for number in range(200):
                attacker = await stack.enter_async_context(comes_from(running, f"127.0.1.{number % 100 + 1}"))
                attacker.writer.write(b"\x16\x03\x01")  # The beginning of a hello that never comes to its end.
                if number % 20 == 0:
                    assert await is_served(running, ssl=tls[1])
            await until(lambda: errors(running, "too_many_handshakes") >= 200 - 16)
            assert count(running, "handshakes") <= 16
            assert await is_served(running, ssl=tls[1])

    run(test)


def test_slow_handshakes_run_out_of_time(tls: Contexts, around: dict[str, Any]) -> None:
    async def test() -> None:
        bounds = {"tls_handshake_timeout_s": 0.5, **around}
        async with farm(FakeServer(), tls=tls[0], **bounds) as running, running.client() as attacker:
            attacker.writer.write(b"\x16\x03\x01\x02\x00")
            with contextlib.suppress(ConnectionResetError):  # what was only looked at is unread
                assert await attacker.rest() == b""
            await until(lambda: count(running, "connections") == 0)
            assert errors(running, "handshake_failed") == 1

    run(test)


def test_what_is_done_ahead_of_a_handshake_is_of_its_time_and_ends_with_it(tls: Contexts) -> None:
    left: list[float] = []

    @asynccontextmanager
    async def slow(connection: socket.socket) -> AsyncIterator[None]:
        began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(2.5)
            yield
        finally:
            left.append(asyncio.get_running_loop().time() - began)

    async def test() -> None:
        bounds = {"tls_handshake_timeout_s": 3.0, "around_handshake": slow}
        async with farm(FakeServer(), tls=tls[0], **bounds) as running:
            async with running.client() as attacker:
                attacker.writer.write(b"\x16\x03\x01\x02\x00")
                assert await attacker.rest() == b""
            assert 2.9 < left[0] < 5.0, "2.5 s ahead and the rest of 3 s, not 3 s more"
            assert await is_served(running, ssl=tls[1])
            await until(lambda: len(left) == 2 and not count(running, "handshakes"))

    run(test)


def test_what_goes_wrong_ahead_of_a_handshake_ends_that_connection_alone(tls: Contexts) -> None:
    async def test() -> None:
        @asynccontextmanager
        async def failing(connection: socket.socket) -> AsyncIterator[None]:
            if connection.getpeername()[0] != HONEST:
                raise ConnectionResetError("the client went away")
            yield

        async with farm(FakeServer(), tls=tls[0], around_handshake=failing) as running:
            async with comes_from(running, "127.0.0.9") as unlucky:
                assert await unlucky.rest() == b""
            assert errors(running, "handshake_failed") == 1
            assert await is_served(running, ssl=tls[1])
            await until(lambda: (count(running, "connections"), count(running, "handshakes")) == (0, 0))

    run(test)


@pytest.mark.parametrize("with_tls", [False, True])
def test_one_address_with_hundreds_of_connections_takes_only_its_share(tls: Contexts, with_tls: bool) -> None:
    async def test() -> None:
        options: dict[str, Any] = {"tls": tls[0]} if with_tls else {}
        browser = {"ssl": tls[1]} if with_tls else {}
        bounds = {"max_connections": 120, "max_connections_per_address": 30, "linger_s": 0.1}
        async with farm(FakeServer(), **options, **bounds) as running, AsyncExitStack() as stack:
            for number in range(400):
                attacker = await stack.enter_async_context(comes_from(running, "127.0.0.66"))
                if not with_tls:
                    # Each is in the midst of a request, so none is idle and could make room.
                    attacker.writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
                if number % 50 == 0:
                    assert await is_served(running, **browser)
            await until(lambda: errors(running, "too_many_from_address") == 400 - 30)
            await until(lambda: count(running, "most_of_one_address") == 30)
            assert await is_served(running, **browser)
            assert errors(running, "too_many_connections") == 0
            await stack.aclose()
            await until(lambda: (count(running, "connections"), count(running, "addresses")) == (0, 0))
            assert await is_served(running, "127.0.0.66", **browser), "and when they are gone it may come again"

    run(test)


def test_the_share_of_one_address_is_refused_with_a_word(tls: Contexts) -> None:
    async def test() -> None:
        async with farm(FakeServer(), max_connections_per_address=2) as running, AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(running.client())
            async with running.client() as third:
                answer = await third.answer()
                assert (answer.status, answer.values("retry-after"), answer.values("connection")) == (
                    429, [b"1"], [b"close"],
                )  # fmt: skip

    run(test)


PACED = {"rate_window_s": 0.6, "min_body_rate": 1000, "min_read_rate": 100_000, "tick_s": 0.02}


def test_a_body_that_drips_is_ended_and_an_honest_one_is_not() -> None:
    async def drip(client: Client, size: int, piece: int, pause_s: float) -> int:
        client.writer.write(POST % size)
        for _ in range(0, size, piece):
            client.writer.write(b"x" * piece)
            await asyncio.sleep(pause_s)
            if client.reader.at_eof() or client.reader._buffer:  # type: ignore[attr-defined]
                break
        return (await client.answer()).status

    async def test() -> None:
        async with farm(FakeServer(), **PACED) as running, running.client() as attacker, running.client() as honest:
            statuses = await asyncio.gather(drip(attacker, 10_000, 1, 0.05), drip(honest, 60_000, 2_000, 0.1))
            assert statuses == [408, 200]
            assert errors(running, "client_too_slow") == 1

    run(test)


def test_who_waits_for_the_web_server_is_not_too_slow() -> None:
    """A body that it does not take, and one that waits for its 100 Continue."""

    async def test() -> None:
        release = asyncio.Event()

        async def late(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            if request.values("expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await read_body(request, reader)
            writer.write(OK)

        size = 30_000_000
        server = FakeServer(behave=late, reads_body=False)
        async with farm(server, **PACED) as running, running.client() as large, running.client() as polite:
            large.writer.write(POST % size + b"x" * size)
            polite.writer.write((POST % 5)[:-2] + b"Expect: 100-continue\r\n\r\n")
            await until(lambda: len(server.seen) == 2)
            await asyncio.sleep(4 * PACED["rate_window_s"])
            release.set()
            assert (await polite.answer()).status == 100
            polite.writer.write(b"hello")
            assert ((await polite.answer()).status, (await large.answer()).status) == (200, 200)
            assert errors(running, "client_too_slow") == 0

    run(test)


def test_a_reader_that_hardly_reads_is_ended_and_a_slow_one_is_not() -> None:
    size = 20_000_000

    async def flood(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(0, size, 100_000):
            writer.write(b"x" * 100_000)
            await writer.drain()

    async def test() -> None:
        async with (
            farm(FakeServer(behave=flood), **PACED) as running,
            running.client(limit=1000) as attacker,
            running.client(limit=65_536) as honest,
        ):
            attacker.writer.write(GET)
            honest.writer.write(GET)
            got = 0
            while got < size:
                # Some megabytes a second.
                got += len(await honest.reader.read(1_000_000))
                await asyncio.sleep(0.005)
            await until(lambda: errors(running, "client_too_slow") == 1)
            await until(lambda: count(running, "connections") == 1)

    run(test)


def test_idle_websockets_leave_room_for_requests() -> None:
    async def test() -> None:
        async with farm(FakeServer(behave=tunnel_echo), max_websockets=3) as running, AsyncExitStack() as stack:
            attackers = [await stack.enter_async_context(running.client()) for _ in range(3)]
            for attacker in attackers:
                attacker.writer.write(UPGRADE)
                await attacker.reader.readuntil(b"hello ")
            assert count(running, "websockets") == 3
            async with running.client() as browser:
                assert (await browser.ask(UPGRADE)).status == 503
                assert (await browser.ask(GET)).status == 200
                assert errors(running, "too_many_websockets") == 1
            attackers[0].writer.transport.abort()
            await until(lambda: count(running, "websockets") == 2)
            async with running.client() as browser:
                browser.writer.write(UPGRADE)
                assert (await browser.answer()).status == 101
            await stack.aclose()
            await until(lambda: (count(running, "connections"), count(running, "addresses")) == (0, 0))

    run(test)


def test_websockets_that_are_asked_for_at_once_do_not_slip_through() -> None:
    async def test() -> None:
        release = asyncio.Event()

        async def agree(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await release.wait()
            await tunnel_echo(request, reader, writer)

        server = FakeServer(behave=agree)
        async with farm(server, max_websockets=2) as running, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(6)]
            for client in clients:
                client.writer.write(UPGRADE)
            await until(lambda: len(server.seen) == 6)
            release.set()
            statuses = sorted([(await client.answer()).status for client in clients])
            assert statuses == [101, 101, 503, 503, 503, 503]
            assert count(running, "websockets") == 2
            assert count(running, "in_flight") == 2

    run(test)


def test_behind_a_trusted_proxy_each_client_has_its_own_share() -> None:
    async def test() -> None:
        release = asyncio.Event()

        async def hold(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if b"/hold" in request.line:
                await release.wait()
            writer.write(OK)

        def of(client: str, path: str = "/") -> bytes:
            return f"GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9, {client}, 127.0.0.9\r\n\r\n".encode()

        bounds: dict[str, Any] = {"trusted_proxies": ("127.0.0.0/8",), "max_connections_per_address": 3}
        server = FakeServer(behave=hold)
        async with farm(server, **bounds) as running, AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(running.client()) for _ in range(6)]
            for at, line in enumerate(lines[:3]):
                line.writer.write(of("6.6.6.6" if at else "6.6.6.6:443", "/hold"))
            await until(lambda: len(server.seen) == 3)
            answer = await lines[3].ask(of("6.6.6.6"))
            assert (answer.status, answer.values("connection")) == (429, []), "the connection is good for others"
            assert (await lines[3].ask(of("7.7.7.7"))).status == 200
            assert (await lines[4].ask(of("[2001:db8::1]:80"))).status == 200
            assert count(running, "most_of_one_address") == 3
            release.set()
            for line in lines[:3]:
                assert (await line.answer()).status == 200
            assert (await lines[3].ask(of("6.6.6.6"))).status == 200
            assert count(running, "addresses") == 0
            assert errors(running, "too_many_from_address") == 1

    run(test)


def test_a_flood_does_not_fill_the_log(tls: Contexts, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server, tls=tls[0]) as running:
            for _ in range(150):
                async with running.client() as attacker:
                    attacker.writer.write(b"GET / HTTP/1.1\r\n\r\n")
                    await attacker.rest()
            await until(lambda: errors(running, "handshake_failed") == 150)

    with caplog.at_level(logging.INFO):
        run(test)
    assert 0 < len(caplog.records) < 40
