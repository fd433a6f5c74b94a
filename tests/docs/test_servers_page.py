"""docs/servers.md is run as a reader would run it: its files in a folder, each of its commands, and a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import coatcheck.errors
from ports import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "servers.md").read_text()
SOURCE = Path(coatcheck.errors.__file__).parents[1]
FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.S)
COMMANDS = re.findall(r"^((?:gunicorn|uvicorn|hypercorn|granian) .*)$", PAGE, re.M)
KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
DEADLINE_S = 60.0
VISITS = 12


def test_all_four_are_there() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"gunicorn", "uvicorn", "hypercorn", "granian"}
    assert len(COMMANDS) == 7


@pytest.mark.parametrize("line", COMMANDS)
def test_a_session_goes_from_worker_to_worker(line: str, tmp_path: Path) -> None:
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text)
    port = free_port()
    command = [sys.executable, "-m", *(word.replace("8000", str(port)) for word in line.split())]
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"SESSION_KEY": KEY, "PYTHONPATH": str(SOURCE)},
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        began = time.monotonic()
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
                break
            except httpx.TransportError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() - began < DEADLINE_S, log.read_text()
                time.sleep(0.1)
        jar = httpx.Cookies()
        told = []
        for _ in range(VISITS):  # each with a connection of its own: whoever is free takes it
            with httpx.Client(cookies=jar, timeout=60) as browser:
                told.append(browser.get(f"http://127.0.0.1:{port}/").text)
                jar.update(browser.cookies)
        assert told == [f"{count} items" for count in range(1, VISITS + 1)]
        server.terminate()
        server.wait(DEADLINE_S)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, 9)
            server.wait(DEADLINE_S)
