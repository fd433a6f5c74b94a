"""Requests and responses on their way through the director: bodies, versions, headers, bounds and time-outs."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack

import pytest

from .harness import HEALTH, LONGEST_S, OK, FakeServer, farm, read_body, run, standstill, until

GET = b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: shop.test\r\n"


def replying(*parts: bytes, pause_s: float = 0.0):  # type: ignore[no-untyped-def]
    async def behave(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if b"Connection: close" in parts[0] or b"HTTP/1.0" in parts[0] or b":" not in parts[0]:
            writer.close()

    return behave


async def echo(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body)


def test_connections_are_kept_on_both_sides() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            for _ in range(20):
                assert (await client.ask(GET)).body == b"ok"
            assert len(server.seen) == 20
            assert server.connections == 1
            status = running.director.status()
            assert (status["requests"], status["in_flight"], status["connections"]) == (20, 0, 1)

    run(test)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test() -> None:
        async def path(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.002)
            body = request.line.split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        async with farm(FakeServer(behave=path)) as running, running.client() as client:
            for number in range(50):
                client.writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            assert [(await client.answer()).body for _ in range(50)] == [b"/%d" % number for number in range(50)]

    run(test)


def test_many_pipelined_requests_that_we_answer_ourselves() -> None:
    async def test() -> None:
        request = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % HEALTH.encode()
        async with farm(FakeServer()) as running, running.client() as client:
            client.writer.write(request * 5_000)
            for _ in range(5_000):
                assert (await client.answer()).status == 404

    run(test)


@pytest.mark.parametrize("size", [0, 1, 1_000, 3_000_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_pass_both_ways(size: int, framing: str) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def chunked_echo(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(request.body), 50_000):
            piece = request.body[at : at + 50_000]
            writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def test() -> None:
        server = FakeServer(behave=echo if framing == "length" else chunked_echo)
        async with farm(server) as running, running.client(limit=8_000_000) as client:
            for _ in range(2):
                if framing == "length":
                    client.writer.write(POST + b"Content-Length: %d\r\n\r\n" % size + body)
                else:
                    client.writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n")
                    for at in range(0, size, 70_000):
                        piece = body[at : at + 70_000]
                        client.writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
                    client.writer.write(b"0\r\n\r\n")
                answer = await client.answer()
                assert (answer.status, len(answer.body)) == (200, size)
                assert answer.body == body
            assert server.connections == 1

    run(test)


def test_responses_without_a_body_end_with_their_head() -> None:
    cases = [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b'HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: "a"\r\n\r\n'),
        (b"GET", b"HTTP/1.1 304\r\n\r\n"),
    ]

    async def test() -> None:
        replies = [response for _, response in cases for _ in range(2)]

        async def behave(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            writer.write(replies.pop(0))

        server = FakeServer(behave=behave)
        async with farm(server) as running, running.client() as client:
            for method, response in cases:
                for _ in range(2):
                    client.writer.write(method + GET[3:])
                    answer = await client.answer(head_only=True)
                    assert answer.head + b"\r\n\r\n" == response
            assert server.connections == 1

    run(test)


def test_more_than_was_announced_never_reaches_the_next_client() -> None:
    async def test() -> None:
        server = FakeServer(behave=replying(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
        async with farm(server) as running, running.client() as client:
            for _ in range(3):
                assert (await client.ask(GET)).body == b"ok"
            assert server.connections == 3

    run(test)


def test_responses_until_the_end_of_the_connection() -> None:
    async def test() -> None:
        for head in (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n"):
            server = FakeServer(behave=replying(head, b"one ", b"two", pause_s=0.01))
            async with farm(server) as running, running.client() as client:
                answer = await client.ask(GET)
                assert (answer.body, answer.values("connection")) == (b"one two", [b"close"])
                assert answer.head.startswith(b"HTTP/1.1 200 OK\r\n")

    run(test)


def test_http_1_0_clients() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n4\r\n two\r\n0\r\n\r\n"

    async def test() -> None:
        replies = [OK, OK, chunked]

        async def behave(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            writer.write(replies.pop(0))

        server = FakeServer(behave=behave)
        async with farm(server) as running:
            async with running.client() as client:
                client.writer.write(b"GET / HTTP/1.0\r\n\r\n")
                answers = await client.rest()
                assert answers.endswith(b"Connection: close\r\n\r\nok")
            async with running.client() as client:
                answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
                assert answer.values("connection") == [b"keep-alive"]
                answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
                assert (answer.values("transfer-encoding"), answer.values("connection")) == ([], [b"close"])
                assert answer.body == b"one two"
            assert {seen.line for seen in server.seen} == {b"GET / HTTP/1.1"}

    run(test)


def test_a_client_that_ends_its_side_still_gets_its_answer() -> None:
    async def test() -> None:
        server = FakeServer(behave=replying(OK, pause_s=0.05))
        async with farm(server) as running, running.client() as client:
            client.writer.write(GET * 3)
            client.writer.write_eof()
            answers = await client.rest()
            assert answers.count(b"HTTP/1.1 200 OK") == answers.count(b"\r\n\r\nok") == 3
            assert answers.endswith(b"Connection: close\r\n\r\nok")

    run(test)


def test_100_continue_comes_from_the_web_server() -> None:
    async def test() -> None:
        async def behave(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + await read_body(request, reader))

        server = FakeServer(behave=behave, reads_body=False)
        async with farm(server) as running, running.client() as client:
            for _ in range(2):
                answer = await client.ask(POST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                assert answer.status == 100
                assert (await client.answer()).head == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>"
                assert (await client.ask(b"hello")).body == b"hello"
            assert server.seen[0].values("expect") == [b"100-continue"]
            assert server.connections == 1

    run(test)


def test_an_early_answer_ends_the_connection_without_losing_the_answer() -> None:
    async def test() -> None:
        full = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfull"
        server = FakeServer(behave=replying(full), reads_body=False)
        async with farm(server) as running, running.client() as client:
            client.writer.write(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 1000)
            answer = await client.answer()
            assert (answer.status, answer.body, answer.values("connection")) == (413, b"full", [b"close"])
            client.writer.write(b"x" * 1000)
            assert await client.rest() == b""

    run(test)


def test_headers_that_end_here_and_headers_that_are_ours() -> None:
    request = (
        b"GET / HTTP/1.1\r\nHost: shop.test:81\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n"
        b"Keep-Alive: 5\r\n"
        b"Proxy-Connection: x\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nProxy: evil\r\n"
        b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\n"
        b"X-Real-IP: 6.6.6.6\r\nx-session-user: admin\r\nX_Session_User: admin\r\nX_Forwarded_For: 6.6.6.6\r\n"
        b"Content_Length: 7\r\nX-Kept: \xe4 yes\r\nX-Kept: twice\r\n\r\n"
    )

    async def test() -> None:
        answer_head = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nUpgrade: h2c\r\n"
        server = FakeServer(
            behave=replying(answer_head + b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 0\r\n\r\n")
        )
        async with farm(server) as running, running.client() as client:
            answer = await client.ask(request)
            assert answer.head == b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 0"
            assert server.seen[0].head.split(b"\r\n") == [
                b"GET / HTTP/1.1",
                b"Host: shop.test:81",
                b"X-Kept: \xe4 yes",
                b"X-Kept: twice",
                b"X-Forwarded-For: 127.0.0.1",
                b"X-Forwarded-Proto: http",
                b"X-Forwarded-Host: shop.test:81",
                b'Forwarded: for=127.0.0.1;host="shop.test:81";proto=http',
                b"Via: 1.1 coatcheck",
            ]

    run(test)


def test_a_trusted_proxy_is_believed_and_extended() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server, trusted_proxies=("127.0.0.0/8",)) as running, running.client() as client:
            await client.ask(
                b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n"
                b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\nForwarded: for=1.1.1.1\r\n\r\n"
            )
            seen = server.seen[0]
            assert seen.values("x-forwarded-for") == [b"1.1.1.1, 2.2.2.2, 127.0.0.1"]
            assert seen.values("x-forwarded-proto") == [b"https"]
            assert seen.values("x-forwarded-host") == [b"shop.test"]
            assert seen.values("forwarded") == [b'for=1.1.1.1, for=127.0.0.1;host="a";proto=http']

    run(test)


CLAIMS = [
    "X-Forwarded-Ssl: on", "X-Forwarded-Scheme: https", "X-Forwarded-User: admin", "X-Forwarded-Email: a@b.test",
    "X-Forwarded-Port: 1", "X-Forwarded-Prefix: /admin", "X-Forwarded-Whatever-Comes: 1", "X-Original-URL: /admin",
    "X-Original-Host: evil", "X-Rewrite-URL: /admin", "X-Real-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6",
    "X-Client-IP: 6.6.6.6", "CF-Connecting-IP: 6.6.6.6", "Remote-User: admin", "X-Remote-User: admin",
    "X-Auth-Request-User: admin", "X-Scheme: https", "Front-End-Https: on", "SSL-Client-Verify: SUCCESS",
    "X-SSL-Client-S-DN: CN=admin", "Client-Cert: :MII=:",
]  # fmt: skip
"""What apps take from a proxy's mouth: an identity, an address, a scheme, another URL."""


@pytest.mark.parametrize("trusted", [False, True])
def test_claims_that_only_a_proxy_may_make_come_from_a_trusted_one_alone(trusted: bool) -> None:
    async def test() -> None:
        server = FakeServer()
        networks = ("127.0.0.0/8",) if trusted else ()
        twins = [claim.partition(":")[0].replace("-", "_") + ": x" for claim in CLAIMS]
        async with farm(server, trusted_proxies=networks) as running, running.client() as client:
            lines = "\r\n".join(CLAIMS + twins + [claim.upper() for claim in CLAIMS] + ["X-Kept: 1"])
            await client.ask(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n".encode())
            seen = server.seen[0]
            for claim in CLAIMS:
                name, _, value = claim.partition(": ")
                values = [value.encode(), value.upper().encode()] if trusted else []
                assert seen.values(name) == values, name
                assert seen.values(name.replace("-", "_")) == [], "CGI and its heirs take one for the other"
            assert seen.values("x-kept") == [b"1"]

    run(test)


def test_a_request_without_a_host_learns_nothing_of_the_inside() -> None:
    """Only HTTP/1.0 may leave it out; an app that makes links would else take the web server's own address."""

    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            await client.ask(b"GET / HTTP/1.0\r\n\r\n")
            assert server.seen[0].values("host") == [b"unknown.invalid"]
            assert server.seen[0].values("x-forwarded-host") == [b"unknown.invalid"]

    run(test)


@pytest.mark.parametrize("named", [b"content-length", b"Content-Length, close", b"set-cookie, transfer-encoding"])
def test_a_connection_header_that_names_the_length_changes_no_framing(named: bytes) -> None:
    async def test() -> None:
        first = b"HTTP/1.1 200 OK\r\nConnection: %b\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok" % named
        server = FakeServer(behave=replying(first))
        async with farm(server) as running, running.client() as client:
            for _ in range(2):
                request = POST + b"Connection: content-length, host\r\nContent-Length: 2\r\n\r\nhi"
                answer = await client.ask(request)
                assert (answer.values("content-length"), answer.body) == ([b"2"], b"ok")
                assert answer.values("set-cookie") == [b"a=b"]
            assert [seen.body for seen in server.seen] == [b"hi", b"hi"]
            assert server.seen[0].values("host") == [b"shop.test"]

    run(test)


def test_a_repeated_header_block_is_not_confused_with_another() -> None:
    """One connection, headers that change and come back: each request gets its own."""

    async def test() -> None:
        first, second = FakeServer("web-1"), FakeServer("web-2")
        async with farm(first, second) as running, running.client() as client:
            for tag in (b"web-1", b"web-1", b"web-2", b"web-2", b"web-1"):
                await client.ask(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: coatcheck-route=tag-%b\r\n\r\n" % tag)
            await client.ask(POST + b"Content-Length: 2\r\n\r\nhi")
            await client.ask(POST + b"Content-Length: 2\r\n\r\nho")
            await client.ask(b"GET http://other.test/x?y HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.ask(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert sorted(seen.body for seen in first.seen + second.seen if seen.body) == [b"hi", b"ho"]
            hosts = {seen.line: seen.values("host") for seen in first.seen + second.seen}
            assert hosts[b"GET /x?y HTTP/1.1"] == [b"other.test"]
            assert hosts[b"GET /x HTTP/1.1"] == [b"a"]
            with_cookie = [len([s for s in server.seen if s.values("cookie")]) for server in (first, second)]
            assert with_cookie == [3, 2]

    run(test)


@pytest.mark.parametrize(
    "target",
    [
        HEALTH,
        "/.well-known/coatcheck",
        "/.well-known/coatcheck/sessions?x=y",
        "//.well-known//coatcheck/health",
        "/./.well-known/x/../coatcheck/health",
        "/%2ewell-known/coatcheck/health",
        "/.well%2Dknown%2Fcoatcheck%2fhealth",
        "/%252ewell-known/coatcheck/health",
        "/.WELL-KNOWN/CoatCheck/health",
        "http://shop.test/.well-known/coatcheck/health",
    ],
)
def test_reserved_paths_are_not_forwarded(target: str) -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            assert (await client.ask(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())).status == 404
            body = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode()
            assert (await client.ask(body)).status == 404
            assert (await client.ask(b"GET /.well-known/other%20one HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            assert len(server.seen) == 1

    run(test)


def test_a_slow_reader_holds_the_web_server_back() -> None:
    size = 60_000_000

    async def test() -> None:
        sent = 0

        async def flood(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                writer.write(b"x" * 100_000)
                sent += 100_000
                await writer.drain()

        async with farm(FakeServer(behave=flood)) as running, running.client(limit=65_536) as client:
            client.writer.write(GET)
            # Socket buffers of two connections, and 64 KiB and a read of ours.
            assert await standstill(lambda: sent) < 20_000_000
            answer = await client.reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < size:
                got += len(await client.reader.read(1_000_000))
            assert (got, answer[:15]) == (size, b"HTTP/1.1 200 OK")

    run(test)


def test_a_slow_web_server_holds_the_upload_back() -> None:
    size = 40_000_000

    async def test() -> None:
        release = asyncio.Event()

        async def behave(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            await release.wait()
            request.body = await read_body(request, reader)
            writer.write(OK)

        server = FakeServer(behave=behave, reads_body=False)
        async with farm(server) as running, running.client() as client:
            client.writer.write(POST + b"Content-Length: %d\r\n\r\n" % size)
            taken = 0

            async def upload() -> None:
                nonlocal taken
                while taken < size:
                    client.writer.write(b"y" * 100_000)
                    await client.writer.drain()
                    taken += 100_000

            task = asyncio.ensure_future(upload())
            assert await standstill(lambda: taken) < 20_000_000
            release.set()
            assert (await client.answer()).body == b"ok"
            await task
            assert len(server.seen[0].body) == size

    run(test)


def test_slow_and_idle_clients_are_ended() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(
            server, header_timeout_s=0.3, keep_alive_timeout_s=0.4, body_timeout_s=0.3, linger_s=0.2, tick_s=0.02
        ) as running:
            async with running.client() as client:
                # A byte now and then does not win more time.
                answered = asyncio.create_task(client.answer())
                for byte in b"GET / HTTP/1.1\r\nHost":
                    if answered.done():
                        break
                    client.writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)
                assert (await answered).status == 408
            async with running.client() as client:
                assert await client.rest() == b""
            async with running.client() as client:
                await client.ask(GET)
                assert await client.rest() == b""
            async with running.client() as client:
                client.writer.write(POST + b"Content-Length: 10\r\n\r\nhalf")
                answer = await client.answer()
                assert (answer.status, answer.values("connection")) == (408, [b"close"])
            await until(lambda: running.director.status()["connections"] == 0)
            assert running.director.status()["errors"]["client_timeout"] == 2

    run(test)


def test_too_many_connections_are_refused() -> None:
    async def test() -> None:
        async with farm(FakeServer(), max_connections=2) as running:
            async with running.client() as one, running.client() as two:
                # Both are in the midst of a request.
                for client in (one, two):
                    client.writer.write(POST + b"Content-Length: 2\r\n\r\n")
                await until(lambda: running.director.status()["in_flight"] == 2)
                async with running.client() as three:
                    answer = await three.answer()
                    assert (answer.status, answer.values("retry-after")) == (503, [b"1"])
                for client in (one, two):
                    client.writer.write(b"ab")
                    assert (await client.answer()).status == 200
            await until(lambda: running.director.status()["connections"] == 0)
            async with running.client() as four:
                assert (await four.ask(GET)).status == 200

    run(test)


def test_idle_connections_make_room() -> None:
    async def test() -> None:
        async with farm(FakeServer(), max_connections=8) as running:
            async with running.client() as busy:
                busy.writer.write(POST + b"Content-Length: 2\r\n\r\n")
                await until(lambda: running.director.status()["in_flight"] == 1)
                async with AsyncExitStack() as stack:
                    for _ in range(40):
                        await stack.enter_async_context(running.client())
                    async with running.client() as newcomer:
                        assert (await newcomer.ask(GET)).status == 200
                    busy.writer.write(b"ab")
                    assert (await busy.answer()).status == 200
            status = running.director.status()
            assert status["evicted"] >= 30
            assert status["errors"]["too_many_connections"] <= 10

    run(test)


def test_a_web_server_that_takes_too_long() -> None:
    async def test() -> None:
        async def hang(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            if b"/half" in request.line:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
            await asyncio.sleep(LONGEST_S)

        async with farm(
            FakeServer(behave=hang), first_byte_timeout_s=0.3, resend_after_s=0, body_timeout_s=0.3, tick_s=0.02
        ) as running:
            async with running.client() as client:
                answer = await client.ask(GET)
                assert (answer.status, answer.values("connection")) == (504, [])
                client.writer.write(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await client.rest()).endswith(b"half")
            status = running.director.status()
            assert (status["errors"]["upstream_timeout"], status["in_flight"]) == (2, 0)

    run(test)


def test_a_slow_but_healthy_server_is_not_asked_twice() -> None:
    async def test() -> None:
        servers = [FakeServer(name, behave=replying(OK, pause_s=0)) for name in ("web-1", "web-2")]

        async def slow(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            await asyncio.sleep(1.2)
            writer.write(OK)

        for server in servers:
            server.behave = slow
        async with farm(*servers) as running, running.client() as client:
            assert (await client.ask(GET)).status == 200
            assert len(servers[0].seen + servers[1].seen) == 1

    run(test)


def test_a_client_that_leaves_frees_its_web_server() -> None:
    async def test() -> None:
        async def hang(request, reader, writer) -> None:  # type: ignore[no-untyped-def]
            await reader.read()

        server = FakeServer(behave=hang)
        async with farm(server) as running:
            async with running.client() as client:
                client.writer.write(GET)
                await until(lambda: len(server.seen) == 1)
                # With a reset. A mere end of stream could be a client that waits for its answer.
                client.writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            await until(lambda: running.director.status()["connections"] == 0)
            assert running.director.status()["in_flight"] == 0
            assert running.director.status()["errors"]["client_gone"] == 1

    run(test)
