"""A farm that speaks TLS by several director workers, and clients that come back to the worker that they choose."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tls.farm import HOST, TLS_1_2, make_certificates

from .farm_process import Farm, eventually

PATIENCE_S = 60.0
TAKE_ONCE = ("--tls-sharing", "take-once")
TAKE_ONCE_PATIENTLY = (*TAKE_ONCE, "--tls-fetch-timeout", "10s")
"""For tests of who gets a session: a store that is late, as on a busy machine, costs a full handshake."""


class TlsFarm:
    """``farm`` with ``workers`` director workers; freezing one means that the others are not restarted for it."""

    def __init__(self, start: Callable[..., Farm], folder: Path, *arguments: str, workers: int = 2, **env: str) -> None:
        self.folder = folder
        if not (folder / "ca.pem").exists():
            make_certificates(folder)
        server = str(folder / "server.pem")
        files = ("--tls-certificate", server, "--tls-key", server)
        many = ("--director-workers", str(workers), "--unresponsive-after", "300")
        self.running = start("--web", "1", "--no-insecure-localhost", *files, *many, *arguments, **env)
        self.workers = [f"director-{n}" for n in range(1, workers + 1)]

    @property
    def port(self) -> int:
        return int(self.running.note()["address"].rpartition(":")[2])

    @contextlib.contextmanager
    def only(self, worker: str) -> Iterator[None]:
        """Nobody else accepts meanwhile: the workers have one queue of connections."""
        others = [self.running.pid(name) for name in self.workers if name != worker]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda pid=pid: "T (stopped)" in Path(f"/proc/{pid}/status").read_text(), "the stop")  # type: ignore[misc]
        try:
            yield
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)

    def kill(self, worker: str) -> None:
        """And wait for its successor."""
        old = self.running.pid(worker)
        os.kill(old, signal.SIGKILL)
        self.running.wait_replaced(worker, old)

    def tls(self) -> dict[str, Any]:
        """What ``coatcheck tls status --json`` says, once every worker has answered."""

        def told() -> dict[str, Any] | None:
            done = self.running.run("tls", "status", "--json")
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found if all(row["tls"] is not None for row in found["directors"]) else None

        found: dict[str, Any] = eventually(told, "an answer of every director")
        return found

    def settle(self) -> None:
        """Wait until every session that was made is stored."""
        eventually(lambda: not any(row["tls"]["storing"] for row in self.tls()["directors"]), "the storing of sessions")

    def of(self, worker: str) -> dict[str, Any]:
        found: dict[str, Any] = next(row["tls"] for row in self.tls()["directors"] if row["name"] == worker)
        return found


class Browser:
    """Python's own TLS client; each visit offers the session of the last one, or a given one."""

    def __init__(self, farm: TlsFarm, version: ssl.TLSVersion) -> None:
        self.context = ssl.create_default_context(cafile=farm.folder / "ca.pem")
        self.context.minimum_version = self.context.maximum_version = version
        self.session: ssl.SSLSession | None = None
        self.farm = farm
        self.source = "127.0.0.1"
        """Where it comes from."""
        self.answer = b""
        """What it was answered last."""

    def visit(self, worker: str = "", *, session: ssl.SSLSession | None = None) -> bool:
        """Whether the session was resumed, at this worker or at any."""
        with self.farm.only(worker) if worker else contextlib.nullcontext():
            return self._visit(session or self.session)

    def shake(self, offered: ssl.SSLSession | None, worker: str = "") -> bool:
        """The same without asking the app for its session, which may be away."""
        with self.farm.only(worker) if worker else contextlib.nullcontext():
            return self._visit(offered, expected=b"HTTP/1.1 ")

    def hello(self) -> bytes:
        """The first bytes of a connection that offers the session of the last visit."""
        unread, said = ssl.MemoryBIO(), ssl.MemoryBIO()
        connection = self.context.wrap_bio(unread, said, server_hostname=HOST, session=self.session)
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.do_handshake()
        return said.read()

    def _visit(self, offered: ssl.SSLSession | None, expected: bytes = b"HTTP/1.1 200") -> bool:
        where = ("127.0.0.1", self.farm.port)
        raw = socket.create_connection(where, timeout=PATIENCE_S, source_address=(self.source, 0))
        return self.shake_hands(raw, offered, expected)

    def shake_hands(
        self, raw: socket.socket, offered: ssl.SSLSession | None, expected: bytes = b"HTTP/1.1 200"
    ) -> bool:
        """The same on a connection that is there already."""
        with raw, self.context.wrap_socket(raw, server_hostname=HOST, session=offered) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := tls.recv(65536):
                answer += piece
            assert answer.startswith(expected), answer[:200]
            self.answer, self.session = answer, tls.session
            return bool(tls.session_reused)


def s_client(farm: TlsFarm, version: ssl.TLSVersion, *more: str) -> str:
    """What OpenSSL's own client says of one connection."""
    flag = "-tls1_2" if version is TLS_1_2 else "-tls1_3"
    words = ["openssl", "s_client", "-connect", f"127.0.0.1:{farm.port}", "-servername", HOST, "-ign_eof", flag, *more]
    request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    ran = subprocess.run(words, input=request, capture_output=True, timeout=PATIENCE_S, check=False)
    said = ran.stdout.decode("ascii", "replace")
    assert "HTTP/1.1 200" in said, said
    return said
