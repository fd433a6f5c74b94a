"""A web server in a process of its own, for apps of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

import coatcheck.errors
from ports import free_port

TESTS = Path(__file__).parents[1]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
SERVERS = {
    "uvicorn": ["uvicorn", "--no-access-log", "--port", "{port}", "{app}"],
    "granian": ["granian", "--interface", "asgi", "--no-access-log", "--port", "{port}", "{app}"],
}


class WebServer:
    """A server process; ``stop`` ends it and gives its output. ``name`` is the server's, maybe with a number."""

    def __init__(self, name: str, folder: Path, app: str = "web.sample_app:app", **environment: str) -> None:
        self.port = free_port()
        self.log = folder / f"{name}.log"
        paths = [str(TESTS), str(SOURCE)]
        environment |= {
            "SESSIONS_FILE": str(folder / "sessions.db"),
            "SERVER_NAME": name,
            "PYTHONPATH": ":".join(paths),
        }
        arguments = SERVERS[name.partition("-")[0]]
        command = [sys.executable, "-m", *(part.format(port=self.port, app=app) for part in arguments)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
        self._wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.address}", timeout=60)

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_TIMEOUT_S)
        return self.log.read_text()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                httpx.get(f"http://{self.address}/", timeout=30)
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.stop()
                time.sleep(0.1)
