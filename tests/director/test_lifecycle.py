"""Start, drain, stop, status, options, TLS and WebSocket tunnels within one process."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.errors import ConfigError

from .harness import BUSY_S, OK, FakeServer, Received, answer_ok, farm, run, standstill, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket"


async def slowly(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.3)
    writer.write(OK)


async def tunnel_echo(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not request.values("upgrade"):
        await answer_ok(request, reader, writer)
        return
    writer.write(AGREED + b"\r\nX-A: b\r\n\r\nhello ")
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    # The client has ended its side; this side may still speak.
    writer.write(b" bye")
    await writer.drain()
    writer.close()


def test_after_the_first_checks_each_web_server_is_known() -> None:
    """So that a farm that says it runs sends the first browsers to all of its web servers."""

    async def test() -> None:
        asked, silent, gone = FakeServer("web-1"), FakeServer("web-2", health=None), FakeServer("web-3")
        for server in (asked, silent, gone):
            await server.start()
        await gone.stop()
        web = tuple(WebServer(s.name, "127.0.0.1", s.port, f"tag-{s.name}") for s in (asked, silent, gone))
        director = EmbeddedDirector(DirectorOptions(servers=web, port=0, check_timeout_s=BUSY_S))
        await director.start()
        try:
            began = asyncio.get_running_loop().time()
            await director.wait_for_first_checks()
            assert asyncio.get_running_loop().time() - began >= BUSY_S, "it waited for the silent one, and no longer"
            assert [row["healthy"] for row in director.status()["servers"]] == [True, False, False]
        finally:
            await director.stop(0)
            for server in (asked, silent):
                await server.stop()

    run(test)


def test_drain_and_admit() -> None:
    async def test() -> None:
        first, second = FakeServer("web-1", slowly), FakeServer("web-2")
        sticky = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: coatcheck-route=tag-web-1\r\n\r\n"
        async with farm(first, second) as running, running.client() as one, running.client() as two:
            one.writer.write(sticky)
            await until(lambda: len(first.seen) == 1)
            running.director.drain("web-1")
            assert (await two.ask(sticky)).status == 200
            assert len(second.seen) == 1
            assert (await one.answer()).status == 200
            state = running.director.status()["servers"][0]
            assert (state["draining"], state["healthy"], state["in_flight"]) == (True, True, 0)
            running.director.admit("web-1")
            assert (await two.ask(sticky)).status == 200
            assert (len(first.seen), len(second.seen)) == (2, 1)
            with pytest.raises(ConfigError, match="no web server 'web-9'"):
                running.director.drain("web-9")

    run(test)


def test_requests_wait_while_all_servers_drain() -> None:
    async def test() -> None:
        async with farm(FakeServer()) as running, running.client() as client:
            running.director.drain("web-1")
            client.writer.write(GET)
            await until(lambda: running.director.status()["waiting"] == 1)
            running.director.admit("web-1")
            assert (await client.answer()).status == 200

    run(test)


def test_stop_finishes_what_is_in_flight_and_closes_what_is_idle() -> None:
    async def test() -> None:
        async with farm(FakeServer(behave=slowly)) as running:
            address = running.director.address
            async with running.client() as idle, running.client() as busy:
                assert (await idle.ask(GET)).status == 200
                busy.writer.write(GET)
                await until(lambda: running.director.status()["in_flight"] == 1)
                stopping = asyncio.ensure_future(running.director.stop(5.0))
                assert await idle.rest() == b""
                answer = await busy.answer()
                assert (answer.status, answer.values("connection")) == (200, [b"close"])
                assert await busy.rest() == b""
                await stopping
            with pytest.raises(OSError, match=r"refused|Connect"):
                await asyncio.open_connection(*address)
            assert running.director.status()["requests"] == 0

    run(test)


def test_stop_drops_what_outlives_the_grace() -> None:
    async def hang(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with farm(FakeServer(behave=hang)) as running, running.client() as client:
            client.writer.write(GET)
            await until(lambda: running.director.status()["in_flight"] == 1)
            began = asyncio.get_running_loop().time()
            await running.director.stop(0.2)
            assert asyncio.get_running_loop().time() - began < 0.2 + BUSY_S
            assert await client.rest() == b""

    run(test)


def test_a_given_socket_and_several_directors_on_one_port() -> None:
    async def test() -> None:
        server = FakeServer()
        await server.start()
        web = (WebServer("web-1", "127.0.0.1", server.port, "t"),)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            first = EmbeddedDirector(DirectorOptions(servers=web))
            await first.start(sock)
            second = EmbeddedDirector(DirectorOptions(servers=web, port=0))
            await second.start()
            third = EmbeddedDirector(DirectorOptions(servers=web, port=second.address[1]))
            await third.start()
            for director in (first, second, third):
                reader, writer = await asyncio.open_connection(*director.address)
                writer.write(GET)
                assert await reader.readexactly(len(OK)) == OK
                writer.close()
            for director in (first, second, third):
                await director.stop(1.0)
        await server.stop()

    run(test)


def test_a_tunnel_passes_bytes_both_ways_and_each_side_ends_for_itself() -> None:
    async def test() -> None:
        server = FakeServer(behave=tunnel_echo)
        async with farm(server) as running, running.client() as client:
            # Bytes that come before the upgrade is agreed are not lost, and are no second request.
            client.writer.write(UPGRADE + GET)
            assert (await client.answer()).head == b"HTTP/1.1 101 Switching Protocols\r\nX-A: b\r\n" + AGREED[34:]
            assert await client.reader.readexactly(6 + len(GET)) == b"hello " + GET
            status = running.director.status()
            assert (status["in_flight"], status["connections"]) == (1, 1)
            client.writer.write(b"z" * 3_000_000)
            assert await client.reader.readexactly(3_000_000) == b"z" * 3_000_000
            client.writer.write_eof()
            assert await client.rest() == b" bye"
            assert [seen.line for seen in server.seen] == [b"GET /ws HTTP/1.1"]
            assert server.seen[0].values("connection") == [b"Upgrade"]
            await until(lambda: running.director.status()["in_flight"] == 0)

    run(test)


def test_a_tunnel_has_back_pressure() -> None:
    async def test() -> None:
        sent = 0

        async def flood(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            writer.write(AGREED + b"\r\n\r\n")
            while True:
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000

        async with farm(FakeServer(behave=flood)) as running, running.client() as client:
            client.writer.write(UPGRADE)
            stalled_at = await standstill(lambda: sent)
            assert stalled_at < 20_000_000
            await client.reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < 30_000_000:
                got += len(await client.reader.read(1_000_000))
            assert sent > stalled_at

    run(test)


def test_tunnels_of_a_drained_server_end_in_the_end() -> None:
    async def test() -> None:
        server = FakeServer(behave=tunnel_echo)
        async with farm(server, tunnel_drain_s=0.3, tick_s=0.02) as running, running.client() as client:
            client.writer.write(UPGRADE)
            await client.reader.readuntil(b"hello ")
            running.director.drain("web-1")
            client.writer.write(b"still")
            assert await client.reader.readexactly(5) == b"still"
            assert await client.rest() == b""

    run(test)


def test_an_upgrade_that_the_server_declines_is_an_ordinary_response() -> None:
    async def test() -> None:
        server = FakeServer()
        async with farm(server) as running, running.client() as client:
            assert (await client.ask(UPGRADE)).body == b"ok"
            assert (await client.ask(UPGRADE.replace(b"websocket", b"h2c"))).body == b"ok"
            assert (await client.ask(GET)).body == b"ok"
            assert [seen.values("upgrade") for seen in server.seen] == [[b"websocket"], [], []]

    run(test)


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


def test_tls(tmp_path: Path) -> None:
    chain, private = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    trusting = ssl.create_default_context(cafile=str(chain))

    async def test() -> None:
        server = FakeServer(behave=tunnel_echo)
        async with farm(server, tls=context) as running:
            async with running.client(ssl=trusting) as client:
                for _ in range(3):
                    assert (await client.ask(GET)).body == b"ok"
                assert server.seen[0].values("x-forwarded-proto") == [b"https"]
                assert (await client.ask(b"GET / HTTP/1.1\r\n\r\n")).status == 400
                assert await client.rest() == b""
            async with running.client(ssl=trusting) as client:
                client.writer.write(UPGRADE)
                await client.reader.readuntil(b"hello ")
                client.writer.write(b"secret")
                assert await client.reader.readexactly(6) == b"secret"
            async with running.client() as client:
                client.writer.write(GET)
                assert b"200" not in await client.rest()

    run(test)


def _server(**changes: object) -> WebServer:
    return WebServer(**({"name": "web-1", "host": "127.0.0.1", "port": 1, "tag": "t"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"servers": ()}, "servers is empty"),
        ({"servers": (_server(), _server(tag="u"))}, "two web servers have the name 'web-1'"),
        ({"servers": (_server(), _server(name="b"))}, "two web servers have the tag 't'"),
        ({"servers": (_server(tag="a;b"),)}, "the tag of 'web-1'"),
        ({"servers": (_server(port=0),)}, "the port of 'web-1'"),
        ({"route_cookie": "a b"}, "route_cookie 'a b'"),
        ({"health_path": "/a b"}, "health_path '/a b'"),
        ({"max_connections": 0}, "max_connections is 0"),
        ({"connect_timeout_s": -1.0}, "connect_timeout_s is -1.0"),
        ({"first_byte_timeout_s": 20.0}, "resend_after: 20s is not below first_byte_timeout"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        EmbeddedDirector(DirectorOptions(**({"servers": (_server(),)} | changes)))  # type: ignore[arg-type]


def test_a_client_that_leaves_before_its_websocket_is_agreed_leaves_no_tunnel_behind() -> None:
    async def test() -> None:
        may_agree = asyncio.Event()
        ended = asyncio.Event()

        async def agree_late(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_agree.wait()
            writer.write(AGREED + b"\r\n\r\n")
            await reader.read()
            ended.set()

        server = FakeServer(behave=agree_late)
        async with farm(server) as running:
            async with running.client() as client:
                client.writer.write(UPGRADE)
                await until(lambda: len(server.seen) == 1)
                client.writer.write_eof()
                # The director has taken the end when it has answered what came later.
                async with running.client() as other:
                    await other.ask(b"GET /.well-known/coatcheck/x HTTP/1.1\r\nHost: a\r\n\r\n")
                may_agree.set()
                await ended.wait()
            await until(lambda: running.director.status()["connections"] == 0)
            assert running.director.status()["websockets"] == 0

    run(test)


def test_one_connection_that_fails_does_not_cost_the_others_what_they_ask_for() -> None:
    async def test() -> None:
        async with farm(FakeServer()) as running, running.client() as first, running.client() as second:
            for client in (first, second):
                assert (await client.ask(GET)).status == 200
            relay = running.director._relay
            assert relay is not None
            faulty, other = relay.traffic.connections

            def fail() -> None:
                raise RuntimeError("a fault of the shell")

            shipped = relay.performers[faulty]
            relay.performers[faulty] = fail
            relay.traffic.stop()
            assert faulty.actions and other.actions
            with pytest.raises(RuntimeError, match="a fault of the shell"):
                relay.flush()
            relay.performers[faulty] = shipped
            relay.flush()
            assert not other.actions, "done with the next event"
            assert await second.rest() == b""

    run(test)
