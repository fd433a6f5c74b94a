"""A farm that shares TLS sessions: servers in processes of their own, a balancer that takes turns, and clients."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509

from forked import ForkedProcess
from ports import free_port

from .signer import PEM, Signer

HOST = "shop.test"
OTHER_HOST = "blog.test"
RELATED_HOST = "www.shop.test"
PATIENCE_S = 30.0
KEY = secrets.token_urlsafe(32)
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"1.2": TLS_1_2, "1.3": TLS_1_3}


def make_certificates(folder: Path) -> None:
    """``ca.pem``, ``server.pem`` (certificate and key, for both hosts), ``client.pem``."""
    signer = Signer("test authority")
    (folder / "ca.pem").write_bytes(signer.certificate.public_bytes(PEM))
    names: list[x509.GeneralName] = [x509.DNSName(one) for one in (HOST, OTHER_HOST, RELATED_HOST)]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    (folder / "server.pem").write_bytes(signer.issue("test server", names)[1])
    (folder / "client.pem").write_bytes(signer.issue("test client")[1])


class Server:
    """A server process; see ``server_process.py``."""

    def __init__(
        self, folder: Path, name: str, store: str | list[str] | dict[str, Any], mode: str = "threads", **options: Any
    ) -> None:
        self.name = name
        settings = {"folder": str(folder), "name": name, "store": store, "mode": mode, "key": KEY, **options}
        self.process = ForkedProcess(
            *("-m", "tls.server_process", json.dumps(settings)),
            loaded=("coatcheck.tls.stand_in", "coatcheck.tls.ahead", "uvloop"),
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
        )
        self.port = int(self._line())

    def _line(self) -> str:
        line = self.process.stdout.readline()
        assert line, f"{self.name} ended: {self.process.wait(PATIENCE_S)}"
        return line

    def status(self, first: str = "") -> dict[str, Any]:
        """``first``: what it does before (``server_process.py``)."""
        self.process.stdin.write(f"{first}\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def wait_for(self, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while not holds(status := self.status()):
            assert time.monotonic() < until, status
            time.sleep(0.01)
        return status

    def settle(self) -> None:
        """Wait until what it makes is stored."""
        self.wait_for(lambda status: not status.get("storing"))

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)


class Servers:
    """Server processes by their settings; each is started once and used by many tests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, Server] = {}

    def __call__(self, store: str, mode: str = "threads", names: str = "web-1 web-2", **options: Any) -> list[Server]:
        """Servers that share one store."""
        found = []
        for name in names.split():
            key = json.dumps([store, mode, name, options])
            server = self._running.get(key)
            if server is None:
                server = self._running[key] = Server(self._folder, name, store, mode, **options)
            found.append(server)
        return found

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()


class Client:
    """Python's own TLS client: a fresh connection with each call, with the session of the last one or a given one."""

    def __init__(self, folder: Path, version: ssl.TLSVersion, with_certificate: bool = False) -> None:
        self.context = ssl.create_default_context(cafile=folder / "ca.pem")
        self.context.minimum_version = self.context.maximum_version = version
        if with_certificate:
            self.context.load_cert_chain(folder / "client.pem")
        self.session: ssl.SSLSession | None = None

    def visit(self, server: Server, *, host: str = HOST, session: ssl.SSLSession | None = None) -> dict[str, Any]:
        """:meth:`ask`, and wait until the server has stored what it made."""
        said = self.ask(server.port, host=host, session=session)
        server.settle()
        return said

    def ask(self, port: int, *, host: str = HOST, session: ssl.SSLSession | None = None) -> dict[str, Any]:
        """What the server says of this connection; remembers the new session."""
        offered = session or self.session
        with (
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw,
            self.context.wrap_socket(raw, server_hostname=host, session=offered) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := tls.recv(65536):
                answer += piece
            self.session = tls.session
            reused = tls.session_reused
        said: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert said["reused"] == reused
        return said


class Balancer:
    """A port that hands each connection to the next server, in turn, byte for byte.

    ``first``: called with the number of a connection, and with the connection itself, before it is handed on.
    """

    def __init__(self, ports: list[int], first: Callable[[int, socket.socket], object] | None = None) -> None:
        self.port = free_port()
        self._ports = ports
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        turn = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._first is not None:
                self._first(turn, client)
            server = socket.create_connection(("127.0.0.1", self._ports[turn % len(self._ports)]))
            turn += 1
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=_pour, args=(one, other), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _pour(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := one.recv(65536):
            other.sendall(piece)
        other.shutdown(socket.SHUT_WR)
