"""Web servers that die, freeze, refuse or talk nonsense: what is retried, where, and what a client is told."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import AsyncExitStack

import pytest

from coatcheck.errors import ConfigError

from .harness import LONGEST_S, OK, Behaviour, FakeServer, Farm, Received, answer_ok, farm, run, until

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
        async with farm(*servers) as running, running.client() as client:
            assert (await client.ask(GET)).status == 502
            assert sum(len(server.seen) for server in servers) == 2
        for server in servers:
            server.seen.clear()
        async with farm(*servers, max_sends=1) as running, running.client() as client:
            assert (await client.ask(GET)).status == 502
            assert sum(len(server.seen) for server in servers) == 1

    run(test)


def test_a_post_moves_when_no_connection_could_be_had() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second, check_interval_s=5.0) as running, running.client() as client:
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
            # It may be dying: the request goes elsewhere. The next one finds the session's host in its place.
            assert (await client.ask(to_1(GET))).status == 200
            assert (await client.ask(to_1(GET))).status == 200
            assert (len(first.seen), len(second.seen)) == (3, 1)
            assert running.director.status()["servers"][0]["healthy"]

    run(test)


def test_the_only_server_is_asked_again_over_a_new_connection() -> None:
    async def test() -> None:
        async def close_once(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.behave = answer_ok
            writer.close()

        server = FakeServer("web-1")
        async with farm(server) as running, running.client() as client:
            assert (await client.ask(GET)).status == 200
            server.behave = close_once
            assert (await client.ask(GET)).status == 200
            assert len(server.seen) == 3

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
            # Counted from the director's last tick, which a busy machine delays.
            assert time.monotonic() - began >= 1.0
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


def blocked_until(release: asyncio.Event) -> Behaviour:
    async def behave(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    return behave


def health(running: Farm, index: int) -> str:
    return str(running.director.status()["servers"][index]["health"])


def test_silence_is_not_death() -> None:
    """A server that answers nothing for a while has its requests, and keeps them; those of strangers go elsewhere."""

    async def test() -> None:
        release = asyncio.Event()
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second) as running, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(6)]
            first.behave, first.health = blocked_until(release), None
            for client, request in zip(clients, (GET, POST, PUT), strict=False):
                client.writer.write(to_1(request))
            await until(lambda: len(first.seen) == 3)
            await until(lambda: health(running, 0) == "busy")
            # Its sessions' new requests wait here and not there: they may still go elsewhere, should it die.
            for client in clients[3:5]:
                client.writer.write(to_1(POST))
            await until(lambda: running.director.status()["waiting"] == 2)
            for _ in range(4):
                assert (await clients[5].ask(GET)).status == 200
            assert (len(first.seen), len(second.seen)) == (3, 4)
            first.behave = answer_ok
            release.set()
            for client in clients[:5]:
                assert (await client.answer()).status == 200
            assert (len(first.seen), len(second.seen)) == (5, 4)
            status = running.director.status()
            assert (status["retries"], status["waiting"], sum(status["errors"].values())) == (0, 0, 0)

    run(test)


def test_when_all_are_busy_everybody_waits_and_nobody_is_refused() -> None:
    async def test() -> None:
        servers = [FakeServer("web-1"), FakeServer("web-2")]
        async with farm(*servers, no_server_wait_s=0.1) as running, running.client() as client:
            for server in servers:
                server.health = None
            await until(lambda: {health(running, 0), health(running, 1)} == {"busy"})
            client.writer.write(GET)
            await until(lambda: running.director.status()["waiting"] == 1)
            await asyncio.sleep(0.3)
            assert running.director.status()["waiting"] == 1
            servers[1].health = FakeServer().health
            assert (await client.answer()).status == 200

    run(test)


def test_what_waits_for_a_busy_server_goes_elsewhere_when_it_dies() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1", hang), FakeServer("web-2")
        async with farm(first, second) as running, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(4)]
            first.health = None
            for client, request in zip(clients, (GET, POST), strict=False):
                client.writer.write(to_1(request))
            await until(lambda: len(first.seen) == 2 and health(running, 0) == "busy")
            for client, request in zip(clients[2:], (GET, POST), strict=True):
                client.writer.write(to_1(request))
            await until(lambda: running.director.status()["waiting"] == 2)
            await first.stop()
            assert [(await client.answer()).status for client in clients] == [200, 502, 200, 200]
            assert (len(first.seen), len(second.seen)) == (2, 3)

    run(test)


def test_patience_ends_when_the_operator_says_so() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1", hang), FakeServer("web-2")
        settings = {"resend_after_s": 1.5, "first_byte_timeout_s": 4.0, "tick_s": 0.02}
        async with farm(first, second, **settings) as running, AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(running.client()) for _ in range(4)]
            first.health = None
            began = time.monotonic()
            for client, request in zip(clients, (GET, POST), strict=False):
                client.writer.write(to_1(request))
            await until(lambda: len(first.seen) == 2 and health(running, 0) == "busy")
            for client, request in zip(clients[2:], (GET, POST), strict=True):
                client.writer.write(to_1(request))
            answers = [(await clients[at].answer()).status for at in (0, 2, 3)]
            assert answers == [200, 200, 200], "it was not sent yet, so even the POST may go"
            assert time.monotonic() - began >= 1.4
            assert (await clients[1].answer()).status == 504
            assert (len(first.seen), len(second.seen)) == (2, 3)

    run(test)


def test_without_an_end_of_patience_a_request_waits_as_long_as_an_answer_may_take() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1", hang), FakeServer("web-2")
        settings = {"resend_after_s": 0.0, "first_byte_timeout_s": 1.5, "tick_s": 0.02}
        async with farm(first, second, **settings) as running, running.client() as sent, running.client() as unsent:
            first.health = None
            sent.writer.write(to_1(GET))
            await until(lambda: len(first.seen) == 1 and health(running, 0) == "busy")
            unsent.writer.write(to_1(GET))
            assert (await sent.answer()).status == 504
            answer = await unsent.answer()
            assert (answer.status, answer.values("retry-after")) == (503, [b"1"])
            assert (len(first.seen), len(second.seen)) == (1, 0)

    run(test)


def test_the_word_of_the_supervisor_frees_what_a_dead_server_had() -> None:
    """Even if something, a child of the dead process, say, holds its connections open."""

    async def test() -> None:
        first, second = FakeServer("web-1", hang), FakeServer("web-2")
        async with farm(first, second) as running, running.client() as getter, running.client() as poster:
            getter.writer.write(to_1(GET))
            poster.writer.write(to_1(POST))
            await until(lambda: len(first.seen) == 2)
            running.director.server_died("web-1")
            assert ((await getter.answer()).status, (await poster.answer()).status) == (200, 502)
            assert (len(first.seen), len(second.seen)) == (2, 1)
            with pytest.raises(ConfigError, match="no web server 'web-9'"):
                running.director.server_died("web-9")

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


def test_a_client_that_pauses_gets_the_end_of_its_last_response() -> None:
    """The web server is done and the connection is to end, but the client takes what is buffered only later."""

    async def test() -> None:
        sent = 0
        done = asyncio.Event()

        async def until_buffered(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            relay = running.director._relay
            assert relay is not None
            (wire,) = relay.wires.values()
            while not wire.unsent():
                writer.write(b"x" * 16384)
                sent += 16384
                await writer.drain()
                await asyncio.sleep(0)
            done.set()
            writer.close()

        async with farm(FakeServer(behave=until_buffered)) as running, running.client(limit=1024) as client:
            client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await done.wait()
            await asyncio.sleep(2.5)
            taken = len((await client.answer()).body)
            assert taken == sent

    run(test)
