"""A store that is down, slow or lying costs full handshakes: never an error, never a stall of everybody."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ports import free_port

from .conftest import start_redis
from .farm import PATIENCE_S, TLS_1_2, TLS_1_3, VERSIONS, Client, Server

MODES = ["threads", "uvloop"]
both_modes = pytest.mark.parametrize("mode", MODES)


@contextlib.contextmanager
def farm(certificates: Path, url: str, mode: str, **options: object) -> Iterator[tuple[Server, Server]]:
    running: list[Server] = []
    try:
        running += [Server(certificates, name, url, mode, **options) for name in ("web-1", "web-2")]
        yield running[0], running[1]
    finally:
        for server in running:
            server.stop()


class Way:
    """A port in front of a Redis that delays, or changes, what it answers."""

    def __init__(self, to: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        self.lie = lambda answer: answer
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                threading.Thread(target=self._pour, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pour, args=(server, client, True), daemon=True).start()

    def _pour(self, one: socket.socket, other: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                if is_answer:
                    time.sleep(self.delay_s)
                    piece = self.lie(piece)
                other.sendall(piece)
            other.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def way(redis_url: str) -> Iterator[Way]:
    way = Way(int(redis_url.rpartition(":")[2]))
    yield way
    way.close()


@both_modes
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_store_that_dies_and_comes_back(
    mode: str, version: ssl.TLSVersion, certificates: Path, tmp_path: Path
) -> None:
    redis = start_redis(port := free_port(), tmp_path)
    try:
        with farm(certificates, f"redis://127.0.0.1:{port}", mode) as (one, other):
            client = Client(certificates, version)
            client.visit(one)
            redis.kill()
            redis.wait(PATIENCE_S)
            for server in (other, one, other):
                assert not client.visit(server)["reused"]
            redis = start_redis(port, tmp_path)
            for server in (one, other):
                server.wait_for(lambda status: status["stores"] == {"session-1": True})
            client.visit(one)
            assert client.visit(other)["reused"]
    finally:
        redis.kill()
        redis.wait(PATIENCE_S)


@both_modes
def test_a_store_that_was_never_there(mode: str, certificates: Path) -> None:
    with farm(certificates, f"redis://127.0.0.1:{free_port()}", mode) as (one, other):
        client = Client(certificates, TLS_1_3)
        assert [client.visit(server)["reused"] for server in (one, other, one)] == [False] * 3


def test_in_threads_a_slow_store_costs_a_few_handshakes_their_limit_and_then_none(certificates: Path, way: Way) -> None:
    with farm(certificates, f"redis://127.0.0.1:{way.port}", "threads", fetch_timeout=0.1) as (one, other):
        sessions = []
        for _ in range(12):
            client = Client(certificates, TLS_1_3)
            client.visit(one)
            sessions.append(client)
        way.delay_s = 5.0
        for client in sessions:
            assert not client.ask(other.port)["reused"]
        # Whatever breaks first, the breaker or the link, the store was not waited for by all of them.
        assert other.status()["unavailable"] == 12
        assert not client.ask(one.port)["reused"]


def test_a_slow_store_stalls_no_event_loop(certificates: Path, way: Way) -> None:
    """Resumptions that wait for 200 ms wait side by side, and who offers nothing does not wait at all."""
    with farm(certificates, f"redis://127.0.0.1:{way.port}", "uvloop") as (one, other):
        clients = [Client(certificates, TLS_1_2) for _ in range(20)]
        for client in clients:
            client.visit(one)
        way.delay_s = 0.2
        resumed: list[bool] = []

        def resume(client: Client) -> None:
            resumed.append(client.ask(other.port)["reused"])

        threads = [threading.Thread(target=resume, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        stranger = Client(certificates, TLS_1_2)
        assert not stranger.ask(other.port)["reused"]
        for thread in threads:
            thread.join(PATIENCE_S)
        assert resumed == [True] * 20


@both_modes
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_store_that_lies(mode: str, version: ssl.TLSVersion, certificates: Path, way: Way) -> None:
    """It gives other bytes of the same length than those that it was given."""
    with farm(certificates, f"redis://127.0.0.1:{way.port}", mode) as (one, other):
        client = Client(certificates, version)
        client.visit(one)
        way.lie = lambda answer: answer[:-20] + bytes(18) + answer[-2:] if answer.startswith(b"$") else answer
        assert not client.visit(other)["reused"]
        other.wait_for(lambda status: status["unreadable"] == 1)


@both_modes
def test_a_store_that_babbles(mode: str, certificates: Path, way: Way) -> None:
    with farm(certificates, f"redis://127.0.0.1:{way.port}", mode) as (one, other):
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        way.lie = lambda answer: secrets.token_bytes(100)
        assert not client.visit(other)["reused"]
        assert not client.visit(one)["reused"]


@both_modes
def test_a_store_that_hangs(mode: str, certificates: Path, tmp_path: Path) -> None:
    redis = start_redis(port := free_port(), tmp_path)
    try:
        with farm(certificates, f"redis://127.0.0.1:{port}", mode, fetch_timeout=0.5) as (one, other):
            client = Client(certificates, TLS_1_3)
            client.visit(one)
            os.kill(redis.pid, signal.SIGSTOP)
            assert not client.ask(other.port)["reused"]
            assert not client.ask(one.port)["reused"]
    finally:
        redis.kill()
        redis.wait(PATIENCE_S)


def test_clients_that_send_half_a_hello_or_none_hold_nobody_up(certificates: Path, redis_url: str) -> None:
    with farm(certificates, redis_url, "uvloop") as (one, other):
        silent = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(50)]
        for at, connection in enumerate(silent):
            connection.sendall([b"", b"\x16", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"][at % 4])
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        client.visit(other)
        assert client.visit(one)["reused"]
        for connection in silent:
            connection.close()
        assert client.visit(one)["reused"]


def test_on_a_loop_that_does_not_fetch_ahead_nothing_is_waited_for(certificates: Path, way: Way) -> None:
    url = f"redis://127.0.0.1:{way.port}"
    with farm(certificates, url, "threads") as (one, _), farm(certificates, url, "plain-asyncio") as (_, other):
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        way.delay_s = 5.0
        began = time.monotonic()
        assert not client.ask(other.port)["reused"]
        assert time.monotonic() - began < 5.0
        status = other.status()
        assert (status["not_ahead"], status["made"], status["storing"]) == (1, 0, 0)


def test_what_was_fetched_for_a_handshake_that_broke_off_is_forgotten(certificates: Path, redis_url: str) -> None:
    with farm(certificates, redis_url, "uvloop") as (one, other):
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client.context.wrap_bio(incoming, outgoing, server_hostname="shop.test", session=client.session)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        hello = bytearray(outgoing.read())
        ciphers_at = 5 + 4 + 2 + 32 + 1 + hello[43]
        size = int.from_bytes(hello[ciphers_at : ciphers_at + 2], "big")
        # Ciphers that nobody knows: OpenSSL ends the handshake before it asks for the session.
        hello[ciphers_at + 2 : ciphers_at + 2 + size] = b"\x0a\x0a" * (size // 2)
        with socket.create_connection(("127.0.0.1", other.port), timeout=PATIENCE_S) as connection:
            connection.sendall(hello)
            connection.recv(65536)
        assert other.wait_for(lambda status: status["ahead"] == 0)["offered"] == 0
        assert not client.visit(one)["reused"], "whoever saw the ID could use it up, and nothing else"


def test_a_hello_that_comes_in_drops_is_answered(certificates: Path, redis_url: str) -> None:
    with farm(certificates, redis_url, "uvloop") as (one, _):
        client = Client(certificates, TLS_1_3)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client.context.wrap_bio(incoming, outgoing, server_hostname="shop.test")
        with socket.create_connection(("127.0.0.1", one.port), timeout=PATIENCE_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            for byte in outgoing.read():
                connection.sendall(bytes([byte]))
                time.sleep(0.0005)
            while True:
                incoming.write(connection.recv(65536))
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    continue
            assert tls.version() == "TLSv1.3"
