"""Certificates, and stores that server processes share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ports import free_port

from .farm import PATIENCE_S, Servers, make_certificates

PASSWORD = "password-of-the-farm"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def start(command: list[str], port: int, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A server process that listens."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
    until = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)


def start_redis(port: int, folder: Path) -> subprocess.Popen[bytes]:
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    assert server is not None, "redis-server is missing: apt-get install redis-server"
    options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": str(folder), "loglevel": "warning"}
    return start([server, *[word for name, value in options.items() for word in (f"--{name}", value)]], port)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process = start_redis(port := free_port(), tmp_path_factory.mktemp("redis"))
    yield f"redis://127.0.0.1:{port}"
    process.kill()
    process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def session_server_url() -> Iterator[str]:
    port = free_port()
    words = ["--listen", f"127.0.0.1:{port}", "--password-env", "STORE_PASSWORD"]
    command = [sys.executable, "-m", "coatcheck.session_server", *words]
    process = start(command, port, {**os.environ, "STORE_PASSWORD": PASSWORD})
    yield f"coatcheck://:{PASSWORD}@127.0.0.1:{port}"
    process.kill()
    process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'tls.db'}"


@pytest.fixture(scope="module")
def servers(certificates: Path) -> Iterator[Servers]:
    """Server processes that the tests of a module share."""
    running = Servers(certificates)
    yield running
    running.stop()


STORES = ["sqlite", "redis", "session-server"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, sqlite_url: str) -> str:
    """The URL of a store that several processes share."""
    if request.param == "sqlite":
        return sqlite_url
    url: str = request.getfixturevalue({"redis": "redis_url", "session-server": "session_server_url"}[request.param])
    return url
