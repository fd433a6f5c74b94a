"""Threaded servers over the system's OpenSSL: sockets that block, time out, or do neither, as Python's own do."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .farm import HOST, PATIENCE_S, VERSIONS
from .in_memory import CONTEXTS, client_context

Make = Callable[[], ssl.SSLContext]
MUCH = bytes(range(256)) * 16_000


@pytest.fixture(params=CONTEXTS.values(), ids=CONTEXTS)
def make(request: pytest.FixtureRequest) -> Make:
    found: Make = request.param
    return found


class Wire:
    """Two connected sockets; the client's end is TLS in a thread of its own, which does what it is told."""

    def __init__(self, context: ssl.SSLContext, certificates: Path) -> None:
        self.raw, self._client_raw = socket.socketpair()
        self.context = context
        self._client_context = client_context(certificates)
        self._threads: list[threading.Thread] = []
        self.failed: list[BaseException] = []

    def client(self, acts: Callable[[ssl.SSLSocket], object]) -> None:
        def run() -> None:
            try:
                self._client_raw.settimeout(PATIENCE_S)
                with self._client_context.wrap_socket(self._client_raw, server_hostname=HOST) as tls:
                    acts(tls)
            except BaseException as error:  # noqa: BLE001 - told to the test
                self.failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def client_says(self, data: bytes) -> None:
        """Past TLS."""
        self._client_raw.sendall(data)

    def serve(self, **options: Any) -> ssl.SSLSocket:
        return self.context.wrap_socket(self.raw, server_side=True, **options)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self.raw.close()
        self._client_raw.close()
        assert not self.failed, self.failed


@pytest.fixture
def wire(make: Make, certificates: Path) -> Iterator[Wire]:
    context = make()
    context.load_cert_chain(certificates / "server.pem")
    wire = Wire(context, certificates)
    yield wire
    wire.end()


def read_all(tls: ssl.SSLSocket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = tls.recv(65536)
        assert piece
        got += piece
    return got


def say_and_hear(tls: ssl.SSLSocket, data: bytes) -> bytes:
    """Both at once, on one thread: before Python 3.13 two may not use one connection of ``ssl``."""
    tls.setblocking(False)
    sent, got = memoryview(data), b""
    while sent or len(got) < len(data):
        moved = False
        with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if sent:
                sent = sent[tls.send(sent[: 1 << 14]) :]
                moved = True
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            piece = tls.recv(1 << 16) if len(got) < len(data) else b""
            got += piece
            moved = moved or bool(piece)
        if not moved:
            select.select([tls], [tls] if sent else [], [], PATIENCE_S)
    return got


@pytest.mark.parametrize("make", [CONTEXTS["stand-in"]], indirect=True, ids=["stand-in"])
def test_both_directions_at_once_in_two_threads(wire: Wire) -> None:
    answered: list[bytes] = []

    def talk(tls: ssl.SSLSocket) -> None:
        answered.append(say_and_hear(tls, MUCH))

    wire.client(talk)
    with wire.serve() as tls:
        assert isinstance(tls, ssl.SSLSocket)
        writer = threading.Thread(target=tls.sendall, args=(MUCH,))
        writer.start()
        assert read_all(tls, len(MUCH)) == MUCH
        writer.join(PATIENCE_S)
        assert not writer.is_alive()
        wire._threads[0].join(PATIENCE_S)
    assert answered == [MUCH]


@pytest.mark.parametrize("make", [CONTEXTS["stand-in"]])  # Python's own have a lock for both, in some versions
def test_who_reads_does_not_wait_until_the_peer_has_taken_what_is_written(wire: Wire) -> None:
    """The peer reads nothing before it has sent more than the sockets hold."""
    answered: list[bytes] = []

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(MUCH)
        answered.append(read_all(tls, len(MUCH)))

    wire.client(talk)
    with wire.serve() as tls:
        writer = threading.Thread(target=tls.sendall, args=(MUCH,))
        writer.start()
        assert read_all(tls, len(MUCH)) == MUCH
        writer.join(PATIENCE_S)
        assert not writer.is_alive()
        wire._threads[0].join(PATIENCE_S)
    assert answered == [MUCH]


def test_files_buffers_and_an_end_that_leaves_the_socket(wire: Wire) -> None:
    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"one\ntwo\n")
        buffer = bytearray(5)
        assert tls.recv_into(buffer, 3) == 3
        assert buffer == b"abc\0\0"
        raw = tls.unwrap()
        raw.sendall(b"in the clear")
        raw.close()

    wire.client(talk)
    tls = wire.serve()
    with tls.makefile("rb") as file:
        assert [file.readline(), file.readline()] == [b"one\n", b"two\n"]
    assert tls.version() == "TLSv1.3"
    assert tls.send(b"abc") == 3
    assert tls.recv(10) == b"", "close_notify"
    raw = tls.unwrap()
    raw.settimeout(PATIENCE_S)
    assert raw.recv(100) == b"in the clear"
    raw.close()


@pytest.mark.parametrize("make", [CONTEXTS["stand-in"]])  # the first releases of 3.11 raise another error
@pytest.mark.parametrize("suppress", [True, False])
def test_an_end_without_close_notify(wire: Wire, suppress: bool) -> None:
    noticed = threading.Event()

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"x")
        tls.recv(1)
        tls.shutdown(socket.SHUT_WR)
        noticed.wait(PATIENCE_S)

    wire.client(talk)
    wire.context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    with wire.serve(suppress_ragged_eofs=suppress) as tls:
        assert tls.recv(1) == b"x"
        tls.sendall(b"y")
        if suppress:
            assert tls.recv(1) == b""
        else:
            with pytest.raises(ssl.SSLEOFError):
                tls.recv(1)
        noticed.set()


def test_who_is_not_answered_is_told_when_the_time_is_over(wire: Wire) -> None:
    wire.raw.settimeout(0.2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="handshake operation timed out"):
        wire.serve()
    assert time.monotonic() - began < PATIENCE_S
    assert wire.raw.fileno() < 0, "it was the new socket's, and that is closed"


def test_drops_do_not_put_the_time_off(wire: Wire) -> None:
    """The limit is on the whole handshake, not on each wait in it."""
    ended = threading.Event()

    def drip() -> None:
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            if ended.wait(0.05):
                return
            with contextlib.suppress(OSError):
                wire.client_says(bytes([byte]))

    dripping = threading.Thread(target=drip)
    dripping.start()
    wire.raw.settimeout(0.5)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.serve()
    assert time.monotonic() - began < 15
    ended.set()
    dripping.join()


def test_after_a_time_out_a_reader_may_try_again(wire: Wire) -> None:
    late = threading.Event()

    def talk(tls: ssl.SSLSocket) -> None:
        late.wait(PATIENCE_S)
        tls.sendall(b"late")
        tls.recv(1)

    wire.client(talk)
    with wire.serve() as tls:
        tls.settimeout(0.1)
        with pytest.raises(TimeoutError, match="read operation timed out"):
            tls.recv(10)
        late.set()
        tls.settimeout(PATIENCE_S)
        assert tls.recv(10) == b"late"
        tls.sendall(b".")


def _until(tls: ssl.SSLSocket, call: Callable[[], Any]) -> Any:
    """A non-blocking call, again and again when it says what it waits for."""
    for _ in range(100_000):
        try:
            return call()
        except ssl.SSLWantReadError:
            assert select.select([tls], [], [], PATIENCE_S)[0]
        except ssl.SSLWantWriteError:
            assert select.select([], [tls], [], PATIENCE_S)[1]
    raise AssertionError("it never ends")


def test_without_blocking_everything_arrives_once(wire: Wire) -> None:
    answered: list[bytes] = []

    def talk(tls: ssl.SSLSocket) -> None:
        time.sleep(0.2)  # until the server's socket is full
        answered.append(read_all(tls, len(MUCH)))
        tls.sendall(MUCH)
        tls.recv(1)

    wire.client(talk)
    wire.raw.setblocking(False)
    tls = wire.serve(do_handshake_on_connect=False)
    _until(tls, tls.do_handshake)
    with pytest.raises(ssl.SSLWantReadError):
        tls.recv(1)
    sent, waits = 0, 0
    while sent < len(MUCH):
        try:
            sent += tls.send(memoryview(MUCH)[sent : sent + 60_000])
        except ssl.SSLWantWriteError:
            waits += 1
            assert select.select([], [tls], [], PATIENCE_S)[1]
    assert waits, "or nothing was proved"
    got = b""
    while len(got) < len(MUCH):
        got += _until(tls, lambda: tls.recv(65536))
    assert got == MUCH
    assert _until(tls, lambda: tls.send(b".")) == 1
    wire._threads[0].join(PATIENCE_S)
    tls.close()
    assert answered == [MUCH]


def test_a_poller_is_woken_for_what_was_not_read(wire: Wire) -> None:
    """Two requests come at once; who reads one and then waits for the socket to become readable finds the other."""
    both_sent = threading.Event()

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"first")
        tls.sendall(b"second")
        both_sent.set()
        tls.recv(1)

    wire.client(talk)
    with wire.serve() as tls:
        assert both_sent.wait(PATIENCE_S)
        assert tls.recv(100) == b"first"
        assert tls.pending() == 0
        assert select.select([tls], [], [], PATIENCE_S)[0]
        assert tls.recv(100) == b"second"
        tls.sendall(b".")


def test_what_is_no_tls_is_refused_at_once(wire: Wire) -> None:
    wire.client_says(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ssl.SSLError) as raised:
        wire.serve()
    assert (raised.value.library, raised.value.reason) == ("SSL", "HTTP_REQUEST")


def test_a_socket_that_was_closed_is_an_error_and_no_crash(wire: Wire) -> None:
    wire.client(lambda tls: tls.recv(1))
    tls = wire.serve()
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    tls.sendall(b".")
    tls.close()
    for call in (lambda: inner.read(1), lambda: inner.write(b"x"), inner.shutdown):
        with pytest.raises(OSError):
            call()


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_connections_from_a_listening_tls_socket(make: Make, version: ssl.TLSVersion, certificates: Path) -> None:
    context = make()
    context.load_cert_chain(certificates / "server.pem")
    said: list[tuple[bytes, str | None]] = []
    with context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as listener:

        def serve() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    said.append((connection.recv(100), connection.version()))
                    connection.sendall(b"bye")

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(3):
            raw = socket.create_connection(listener.getsockname()[:2], PATIENCE_S)
            with client_context(certificates, version).wrap_socket(raw, server_hostname=HOST) as tls:
                tls.sendall(b"hello")
                assert tls.recv(100) == b"bye"
        thread.join(PATIENCE_S)
    assert said == [(b"hello", "TLSv1.3" if version is ssl.TLSVersion.TLSv1_3 else "TLSv1.2")] * 3
