"""An ASGI server in a process of its own, serving ``site_app``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

HERE = Path(__file__).parent
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
SERVERS = ("uvicorn", "granian")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(kind: str, app: str, port: int) -> list[str]:
    here = [sys.executable, "-m", kind, app, "--factory", "--host", "127.0.0.1", "--port", str(port)]
    if kind == "uvicorn":
        return [*here, "--no-access-log"]
    return [*here, "--interface", "asgi", "--workers", "1", "--no-access-log"]


class ServerProcess:
    """``kind`` is uvicorn or granian; ``name`` is also the process's route tag."""

    def __init__(self, kind: str, name: str, sites: str, key: str, log: Path, app: str = "site_app:make") -> None:
        self.name, self.port, self.log = name, free_port(), log
        known = {"SITE_NAME": name, "SITE_SESSION_SERVERS": sites, "SITE_KEY": key, "PYTHONPATH": str(HERE)}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                _command(kind, app, self.port), env={**os.environ, **known}, stdout=output, stderr=output
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                httpx.get(f"{self.url}/untouched", timeout=2)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def end(self) -> None:
        """Stop gracefully, as an operator does."""
        if self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise
