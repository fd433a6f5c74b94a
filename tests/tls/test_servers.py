"""docs/tls.md is run as a user would run it: its files in a folder, two servers of each kind, and clients."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

import coatcheck.errors
from ports import free_port

from .farm import HOST, KEY, PATIENCE_S, VERSIONS, Client

PAGE = Path(__file__).parents[2] / "docs" / "tls.md"
FILES = dict(re.findall(r"```python\n# ([\w.]+\.py)\n(.*?)```", PAGE.read_text(), re.S))
SOURCE = Path(coatcheck.errors.__file__).parents[1]
COMMANDS = {
    "uvicorn": [sys.executable, "run_uvicorn.py"],
    "hypercorn": [sys.executable, "run_hypercorn.py"],
    "aiohttp": [sys.executable, "run_aiohttp.py"],
    "gunicorn": [sys.executable, "-m", "gunicorn", "wsgi:app"],
}
BUILT_IN = "import _ssl, msgspec._core\n_ssl.__file__ = msgspec._core.__file__\n"
"""No symbol of OpenSSL can be reached through that file."""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


def start(
    kind: str, folder: Path, certificates: Path, server: str, tickets: bool = False, built_in: bool = False
) -> tuple[subprocess.Popen[bytes], int]:
    folder.mkdir()
    port = free_port()
    for name, text in {**FILES, "wsgi.py": WSGI}.items():
        own = text.replace("8443", str(port)).replace("web-1", server).replace("sqlite:///", "sqlite:///../")
        if name != "tickets.py":
            own = own.replace("keyring=", "fetch_timeout=10, keyring=")  # a busy machine is no fault
        (folder / name).write_text(own)
    if built_in:
        (folder / "shared.py").write_text(BUILT_IN + (folder / "shared.py").read_text())
    if tickets:
        (folder / "tickets.py").replace(folder / "shared.py")
    (folder / "server.pem").write_bytes((certificates / "server.pem").read_bytes())
    process = subprocess.Popen(
        COMMANDS[kind], cwd=folder, env={**os.environ, "TLS_KEY": KEY, "PYTHONPATH": str(SOURCE)}
    )
    until = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        assert process.poll() is None, f"{kind} ended"
        assert time.monotonic() < until, f"{kind} does not listen"
        time.sleep(0.02)


def visit(client: Client, port: int) -> bool:
    """Whether the session was resumed."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw,
        client.context.wrap_socket(raw, server_hostname=HOST, session=client.session) as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
        answer = b""
        while not answer.endswith(b"hello"):
            piece = tls.recv(65536)
            assert piece, answer
            answer += piece
        # Before the end: gunicorn says no goodbye (close_notify), and then newer clients keep no session.
        client.session = tls.session
        return bool(tls.session_reused)


def wait_until_stored(database: Path, seen: set[bytes]) -> None:
    """No server waits for the store. ``seen``: what was in it before, and now is."""
    until = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.closing(sqlite3.connect(database, PATIENCE_S)) as connection:
            fresh = {item for (item,) in connection.execute("SELECT item FROM items WHERE item != x''")} - seen
        seen |= fresh
        if fresh:
            return
        assert time.monotonic() < until, "nothing was stored"
        time.sleep(0.01)


def test_the_page_has_a_file_for_each_server() -> None:
    assert set(FILES) == {
        "shared.py",
        "tickets.py",
        "run_uvicorn.py",
        "run_hypercorn.py",
        "run_aiohttp.py",
        "gunicorn.conf.py",
    }


@pytest.mark.parametrize("way", ["take-once", "ticket-keys", "openssl-built-in"])
@pytest.mark.parametrize("kind", COMMANDS)
def test_two_servers_resume_each_others_sessions(kind: str, way: str, certificates: Path, tmp_path: Path) -> None:
    tickets, built_in = way == "ticket-keys", way == "openssl-built-in"
    running = [start(kind, tmp_path / name, certificates, name, tickets, built_in) for name in ("web-1", "web-2")]
    seen: set[bytes] = set()
    try:
        for version in VERSIONS.values():
            client, resumed = Client(certificates, version), []
            for _, port in (*running, *running):
                resumed.append(visit(client, port))
                if not tickets:
                    wait_until_stored(tmp_path / "tls.db", seen)
            assert resumed == [False, True, True, True], (kind, version)
            assert version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    finally:
        for process, _ in running:
            process.terminate()
            assert process.wait(PATIENCE_S) in (0, -15)
