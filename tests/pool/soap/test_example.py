"""The example provider, run as its words say."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx

from .wire import envelope, read

ROOT = Path(__file__).parents[3]


def test_uvicorn_runs_the_example(tmp_path: Path) -> None:
    listening = tmp_path / "socket"
    command = [sys.executable, "-m", "uvicorn", "examples.soap_provider:app", "--uds", str(listening)]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + 30
            while not listening.exists():
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(listening)), base_url="http://example") as client:
                assert "UpdateAccount" in client.get("/soap?wsdl").text
                assert log_in_by(client) is not None
        finally:
            server.terminate()


def log_in_by(client: httpx.Client) -> str | None:
    body = envelope(SessionType="Stateless", UsernameToken="SADMIN", PasswordText="SADMIN")
    return read(client.post("/soap", content=body, headers={"Content-Type": "text/xml"})).token
