"""Web servers that die, freeze, refuse or talk nonsense: what is retried, where, and what a client is told."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

import pytest

from coatcheck.director import DirectorOptions

from .harness import BUSY_S, LONGEST_S, OK, Client, FakeServer, Received, answer_ok, farm, run, until

GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\nhello"
PUT = POST.replace(b"POST", b"PUT")
TO_1 = b"Cookie: x=y; coatcheck-route=tag-web-1; z=1\r\n\r\n"


def to_1(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    return head + b"\r\n" + TO_1 + body


async def reset(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def close(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def die_after_head(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
    writer.close()


async def hang(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(LONGEST_S)


@pytest.mark.parametrize("behave", [reset, close, die_after_head])
@pytest.mark.parametrize("request_", [GET, PUT, GET.replace(b"GET", b"HEAD"), GET.replace(b"GET", b"DELETE")])
def test_an_idempotent_request_moves_to_another_server(behave, request_) -> None:  # type: ignore[no-untyped-def]
    async def test() -> None:
        first, second = FakeServer("web-1", behave), FakeServer("web-2")
        async with farm(first, second) as running, running.client() as client:
            answer = await client.ask(to_1(request_))
            assert answer.status == 200
            if request_.startswith(b"HEAD") and behave is die_after_head:
                assert first.seen
                return  # For HEAD, the head is all there is.
            assert (len(first.seen), len(second.seen)) == (1, 1)
            assert second.seen[0].body == first.seen[0].body
            assert running.director.status()["retries"] == 1

    run(test)


@pytest.mark.parametrize("behave", [reset, close, die_after_head])
def test_a_post_that_was_sent_is_never_sent_again(behave) -> None:  # type: ignore[no-untyped-def]
    async def test() -> None:
        servers = [FakeServer("web-1", behave), FakeServer("web-2", behave)]
        async with farm(*servers) as running, running.client() as client:
            answer = await client.ask(to_1(POST))
            assert (answer.status, answer.values("connection")) == (502, [])
            assert [len(server.seen) for server in servers] == [1, 0]
            # The connection is good for more.
            servers[1].behave = answer_ok
            assert (
                await client.ask(GET.replace(b"\r\n\r\n", b"\r\nCookie: coatcheck-route=tag-web-2\r\n\r\n"))
            ).status == 200

    run(test)


def test_a_request_that_kills_every_server_is_given_up() -> None:
    async def test() -> None:
        servers = [FakeServer(f"web-{n}", reset) for n in range(5)]
        async with farm(*servers, max_tries=3) as running, running.client() as client:
            assert (await client.ask(GET)).status == 502
            assert sum(len(server.seen) for server in servers) == 3

    run(test)


def test_a_post_moves_when_no_connection_could_be_had() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second, check_every_s=5.0) as running, running.client() as client:
            await first.stop()
            assert (await client.ask(to_1(POST))).status == 200
            assert second.seen[0].body == b"hello"
            state = running.director.status()["servers"][0]
            assert (state["healthy"], state["failures"]) == (False, 1)
            # And it comes back by a passed check alone.
            await first.start()
            await running.until_healthy({"web-1", "web-2"})
            assert (await client.ask(to_1(GET))).status == 200
            assert len(first.seen) == 1

    run(test)


def test_stale_connections_are_not_used() -> None:
    """The web server closes an unused connection: neither a GET nor a POST meets it."""

    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            for _ in range(20):
                assert (await client.ask(GET)).status == 200
                for writer in list(server._writers):
                    writer.close()
                await asyncio.sleep(0)
                assert (await client.ask(POST)).status == 200
            assert running.director.status()["errors"]["upstream_lost"] == 0

    run(test)


def test_a_connection_that_dies_in_the_pool_costs_the_server_no_trust() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second) as running, running.client() as client:
            assert (await client.ask(to_1(GET))).status == 200

            async def close_once(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                first.behave = answer_ok
                writer.close()

            first.behave = close_once
            # Sent again over a new connection, to the server that hosts the session.
            assert (await client.ask(to_1(GET))).status == 200
            assert (len(first.seen), len(second.seen)) == (3, 0)
            assert running.director.status()["servers"][0]["healthy"]

    run(test)


def test_a_response_that_breaks_off_is_seen_to_break_off() -> None:
    async def broken(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/chunked" in request.line:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        elif b"/close" in request.line:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\none")
        await asyncio.sleep(0.05)
        await reset(request, reader, writer)

    async def test() -> None:
        servers = [FakeServer("web-1", broken), FakeServer("web-2", broken)]
        async with farm(*servers) as running:
            for path in (b"/chunked", b"/length"):
                async with running.client() as client:
                    client.writer.write(GET.replace(b"/ ", path + b" "))
                    assert (await client.rest()).endswith(b"one" if path == b"/length" else b"one\r\n")
            async with running.client() as client:
                client.writer.write(GET.replace(b"/ ", b"/close "))
                with pytest.raises(ConnectionResetError):
                    await client.rest()
            assert len(servers[0].seen + servers[1].seen) == 3
            assert running.director.status()["errors"]["upstream_lost"] == 3

    run(test)


def test_without_a_server_a_request_waits_for_one() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client, running.client() as other:
            await server.stop()
            client.writer.write(GET)
            other.writer.write(POST)
            await until(lambda: running.director.status()["waiting"] == 2)
            await server.start()
            assert (await client.answer()).status == 200
            assert (await other.answer()).status == 200
            assert [len(server.seen), running.director.status()["waiting"]] == [2, 0]

    run(test)


def test_without_a_server_for_too_long_a_request_is_refused() -> None:
    async def test() -> None:
        server = FakeServer()
        async with (
            farm(server, no_server_wait_s=1.5, max_waiting=1, tick_s=0.02) as running,
            running.client() as client,
        ):
            await server.stop()
            began = time.monotonic()
            client.writer.write(GET)
            await until(lambda: running.director.status()["waiting"] == 1)
            async with running.client() as other:
                answer = await other.ask(GET)
                assert (answer.status, answer.values("retry-after")) == (503, [b"1"])
                assert running.director.status()["waiting"] == 1, "who may not wait is refused before"
            answer = await client.answer()
            assert (answer.status, answer.values("retry-after"), answer.values("connection")) == (503, [b"1"], [])
            assert time.monotonic() - began >= 1.49
            assert running.director.status()["errors"]["no_server"] == 2

    run(test)


def test_waiting_clients_that_leave_are_forgotten() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server, no_server_wait_s=10.0) as running:
            await server.stop()
            async with running.client() as client:
                client.writer.write(GET)
                await until(lambda: running.director.status()["waiting"] == 1)
                client.writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            await until(lambda: running.director.status()["waiting"] == 0)
            assert running.director.status()["connections"] == 0

    run(test)


def test_a_frozen_server_costs_a_get_a_second_at_most() -> None:
    promised = DirectorOptions(servers=())
    suspected_s = promised.check_every_s + promised.check_timeout_s
    assert max(promised.retry_after_s, suspected_s) + promised.tick_s <= 1.0

    async def test() -> None:
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second) as running:
            clients: list[Client] = []
            async with running.client() as getter, running.client() as poster:
                assert (await getter.ask(to_1(GET))).status == 200
                clients += [getter, poster]
                first.behave, first.health = hang, None
                began = time.monotonic()
                getter.writer.write(to_1(GET))
                poster.writer.write(to_1(POST))
                assert (await getter.answer()).status == 200
                assert (await poster.answer()).status == 504
                assert time.monotonic() - began < 1.0 + BUSY_S
                assert [seen.line[:4] for seen in second.seen] == [b"GET "]
                assert running.director.status()["errors"]["upstream_silent"] == 1
                # Its sessions' next requests lose no time at all: they do not go there.
                assert (await getter.ask(to_1(GET))).status == 200
                assert (len(first.seen), len(second.seen)) == (3, 2)

    run(test)


def test_a_server_whose_health_check_alone_hangs_keeps_its_requests() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            server.health = None
            for _ in range(40):
                assert (await client.ask(GET)).status == 200
                await asyncio.sleep(0.03)
            assert running.director.status()["servers"][0]["healthy"]

    run(test)


def test_a_server_that_stops_in_order_finishes_its_requests() -> None:
    """It refuses health checks (503), but answers what it has begun, the POST too."""

    async def test() -> None:
        async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(1.3)
            writer.write(OK)

        first, second = FakeServer("web-1", slow), FakeServer("web-2")
        async with farm(first, second) as running, running.client() as client, running.client() as other:
            client.writer.write(to_1(POST))
            await until(lambda: len(first.seen) == 1)
            first.health = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
            await running.until_healthy({"web-2"})
            assert (await other.ask(to_1(GET))).status == 200
            assert (await client.answer()).status == 200
            assert (len(first.seen), len(second.seen)) == (1, 1)

    run(test)


def test_a_large_upload_is_not_kept_for_a_second_try() -> None:
    async def test() -> None:
        servers = [FakeServer("web-1", reset), FakeServer("web-2", reset)]
        async with farm(*servers, kept_body_bytes=1_000) as running, running.client() as client:
            body = b"z" * 5_000
            put = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + body
            assert (await client.ask(put)).status == 502
            assert len(servers[0].seen + servers[1].seen) == 1

    run(test)


def test_bytes_that_nobody_asked_for_are_no_answer() -> None:
    async def test() -> None:
        async def talkative(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OK)
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")

        async with farm(FakeServer(behave=talkative)) as running, running.client() as client:
            for _ in range(5):
                assert (await client.ask(GET)).body == b"ok"
                await asyncio.sleep(0.05)

    run(test)
