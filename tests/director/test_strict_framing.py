"""What could be read two ways is refused, and no web server ever sees it (RFC 9112, 11.2)."""

from __future__ import annotations

import asyncio
import random

import pytest

from .harness import OK, FakeServer, farm, run

HOST = b"Host: shop.test\r\n"
SECOND = b"GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n"

REFUSED: dict[str, tuple[bytes, int]] = {
    "length beside transfer coding": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "transfer coding beside length": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "the same length twice": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "length list": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    "signed length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\nhello", 400),
    "negative length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\nhello", 400),
    "hexadecimal length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 0x5\r\n\r\nhello", 400),
    "length with a blank": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5 5\r\n\r\nhello", 400),
    "empty length": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\nhello", 400),
    "length of 30 digits": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello", 400),
    "unicode digits": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \xd9\xa5\r\n\r\nhello", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 400),
    "coding list": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400),
    "chunked then identity": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400),
    "coding with a vertical tab": (
        b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding in quotes": (b"POST / HTTP/1.1\r\n" + HOST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "coding in HTTP/1.0": (b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "folded line": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n folded\r\n\r\n", 400),
    "folded coding": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "blank before the first header": (b"GET / HTTP/1.1\r\n " + HOST + b"\r\n", 400),
    "blank before the colon": (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length : 5\r\n\r\nhello", 400),
    "tab before the colon": (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n", 400),
    "empty name": (b"GET / HTTP/1.1\r\n" + HOST + b": value\r\n\r\n", 400),
    "name with a control": (b"GET / HTTP/1.1\r\n" + HOST + b"X\x01A: 1\r\n\r\n", 400),
    "value with a NUL": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\x002\r\n\r\n", 400),
    "bare LF in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "bare CR in a header": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\rX-B: 2\r\n\r\n", 400),
    "bare CR in the request line": (b"GET /\r HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "LF as the only line end": (b"GET / HTTP/1.1\nHost: shop.test\n\n", 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\r\n" + HOST + b"\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "empty host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: shop.test/x\r\n\r\n", 400),
    "host with user": (b"GET / HTTP/1.1\r\nHost: me@shop.test\r\n\r\n", 400),
    "host with half a bracket": (b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", 400),
    "host with the other half": (b"GET / HTTP/1.1\r\nHost: ]a\r\n\r\n", 400),
    "host in empty brackets": (b"GET / HTTP/1.1\r\nHost: []\r\n\r\n", 400),
    "host that is no IPv6 address": (b"GET / HTTP/1.1\r\nHost: [::::]\r\n\r\n", 400),
    "name in brackets": (b"GET / HTTP/1.1\r\nHost: [shop.test]\r\n\r\n", 400),
    "host with two ports": (b"GET / HTTP/1.1\r\nHost: a.test:80:81\r\n\r\n", 400),
    "host with a port out of range": (b"GET / HTTP/1.1\r\nHost: a.test:65536\r\n\r\n", 400),
    "host with a word for a port": (b"GET / HTTP/1.1\r\nHost: a.test:http\r\n\r\n", 400),
    "port without a host": (b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400),
    "target with half a bracket": (b"GET http://[/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two hosts in one": (b"GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n", 400),
    "two blanks in the request line": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "blank behind the version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "tab in the request line": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no version": (b"GET /\r\n" + HOST + b"\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/01.1": (b"GET / HTTP/01.1\r\n" + HOST + b"\r\n", 400),
    "lower-case version": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "target with a fragment": (b"GET /#x HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target without a slash": (b"GET shop HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target of another scheme": (b"GET ftp://shop.test/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target in raw UTF-8": (b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "asterisk for GET": (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "CONNECT": (b"CONNECT shop.test:443 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
    "method with a colon": (b"GE:T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "unknown expectation": (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: cake\r\nContent-Length: 1\r\n\r\nx", 417),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40, 400),
    "two empty lines first": (b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "too many headers": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: 1\r\n" * 200 + b"\r\n", 431),
    "huge head": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "huge head without an end": (b"GET / HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 300_000, 431),
}  # fmt: skip

CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
BAD_CHUNKS: dict[str, bytes] = {
    "no number": b"xyz\r\nhello\r\n0\r\n\r\n",
    "prefix 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "blank behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "blank before": b" 5\r\nhello\r\n0\r\n\r\n",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nhello\r\n0\r\n\r\n",
    "overflow": b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "more data than announced": b"5\r\nhelloworld\r\n0\r\n\r\n",
    "less data than announced": b"9\r\nhello\r\n0\r\n\r\n" + b"x" * 10,
    "endless extension": b"5;" + b"a" * 10_000 + b"\r\nhello\r\n0\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX-A: 1\r\n b\r\n\r\n",
    "trailer without a colon": b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n",
    "bare LF in a trailer": b"5\r\nhello\r\n0\r\nX-A: 1\nX-B: 2\r\n\r\n",
    "endless trailers": b"5\r\nhello\r\n0\r\n" + b"X-A: 1\r\n" * 5_000 + b"\r\n",
}


WAYS = [(case, "at once") for case in REFUSED]
WAYS += [(case, "byte by byte") for case, (request, _) in REFUSED.items() if len(request) <= 2_000]


@pytest.mark.parametrize(("case", "way"), WAYS)
def test_a_doubtful_head_is_refused_and_goes_nowhere(case: str, way: str) -> None:
    request, status = REFUSED[case]

    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            if way == "at once":
                client.writer.write(request + SECOND)
            else:
                for at in range(len(request)):
                    client.writer.write(request[at : at + 1])
                    await asyncio.sleep(0)
                client.writer.write(SECOND)
            rest = asyncio.ensure_future(client.rest())
            while not rest.done():
                assert server.seen == [], "it reached a web server"
                await asyncio.sleep(0.005)
            answers = rest.result()
            assert int(answers[9:12]) == status
            assert b"\r\nConnection: close\r\n" in answers
            assert answers.count(b"HTTP/1.1 ") == 1
            assert server.seen == []
            assert running.director.status()["errors"]["bad_request"] == 1

    run(test)


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_doubtful_chunks_end_the_request_and_the_connection(case: str) -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            client.writer.write(CHUNKED + BAD_CHUNKS[case] + SECOND)
            answers = await client.rest()
            assert int(answers[9:12]) == 400
            assert answers.count(b"HTTP/1.1 ") == 1
            await asyncio.sleep(0.02)
            assert not [seen for seen in server.seen if b"smuggled" in seen.head or seen.body]

    run(test)


def test_a_body_is_never_read_as_a_request() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            length = b"POST /one HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(SECOND) + SECOND
            chunked = CHUNKED + b"%x;ext=1\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(SECOND), SECOND)
            client.writer.write(length + chunked + SECOND)
            for _ in range(3):
                assert (await client.answer()).body == b"ok"
            assert [seen.line for seen in server.seen] == [
                b"POST /one HTTP/1.1", b"POST / HTTP/1.1", b"GET /smuggled HTTP/1.1"]  # fmt: skip
            assert [seen.body for seen in server.seen] == [SECOND, SECOND, b""]
            # Extensions and trailers are for us alone.
            assert not [seen for seen in server.seen if b"ext" in seen.head or b"Trailer" in seen.head]

    run(test)


def test_mutated_heads_reach_the_server_only_as_what_was_understood() -> None:
    """Random damage to good requests: no hang, no crash, and never a request that was not sent."""
    good = [
        b"GET /a HTTP/1.1\r\nHost: shop.test\r\nCookie: a=b\r\nAccept: */*\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nX-A: 1\r\n\r\nhello",
        b"POST /c HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ]
    pieces = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b"\x0b", b"\xff", b",", b";", b"0", b"\r\n\r\n"]
    pieces += [
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: b.test\r\n",
        b"Connection: close\r\n",
    ]
    chance = random.Random(20261121)

    async def test() -> None:
        server = FakeServer()
        # Each request has its end, so no time-out is needed; client and director share a loop, which may come late.
        async with farm(server, first_byte_timeout_s=2.0, resend_after_s=0, linger_s=0.1) as running:
            for _ in range(1_500):
                request = bytearray(chance.choice(good))
                for _ in range(chance.randint(1, 3)):
                    at = chance.randrange(len(request))
                    cut = chance.choice([0, 0, 1, 2])
                    request[at : at + cut] = chance.choice(pieces)
                server.seen.clear()
                async with running.client() as client:
                    client.writer.write(bytes(request))
                    client.writer.write_eof()
                    answers = await client.rest()
                assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
                for seen in server.seen:
                    assert len(seen.values("host")) == 1
                    lengths = seen.values("content-length")
                    assert len(lengths) + len(seen.values("transfer-encoding")) <= 1
                    # A request line as in what the client sent, after a line end or at the beginning.
                    method_and_target = seen.line.rsplit(b" ", 1)[0]
                    assert method_and_target in bytes(request)
                assert len(server.seen) <= 1 + bytes(request).count(b"\r\n\r\n")
            async with running.client() as client:
                assert (await client.ask(good[0])).body == b"ok"

    run(test)


def test_a_response_with_two_readings_is_refused() -> None:
    cases = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok": 502,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": 502,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok": 502,
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok": 502,
        b"HTTP/1.1 200 OK\r\nX: a\n b\r\n\r\nok": 502,
        b"HTTP/1.1 2000 OK\r\n\r\nok": 502,
        b"HTTP/1.1 099 OK\r\n\r\nok": 502,
        b"ICY 200 OK\r\n\r\nok": 502,
        b"\r\n\r\n": 502,
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": 502,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000: 502,
        OK: 200,
    }

    async def test() -> None:
        for response, status in cases.items():

            async def behave(request, reader, writer, response=response):  # type: ignore[no-untyped-def]
                writer.write(response)

            server = FakeServer(behave=behave)
            async with farm(server) as running, running.client() as client:
                answer = await client.ask(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (answer.status, response[:60]) == (status, response[:60])
                assert len(server.seen) == 1

    run(test)
