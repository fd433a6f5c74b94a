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
SLOW_S = 60.0  # how long a worker that is not the first takes to import the app
SLOW_SHOP = f"""
import os, time
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    open("second", "w").close()
    time.sleep({SLOW_S})
from {{module}} import app
"""


def test_all_four_are_there() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"gunicorn", "uvicorn", "hypercorn", "granian"}
    assert len(COMMANDS) == 7


@pytest.mark.parametrize("line", COMMANDS)
def test_a_session_goes_from_worker_to_worker(line: str, tmp_path: Path) -> None:
    server, address, log = started(line, tmp_path)
    try:
        until_answered(server, address, log)
        jar = httpx.Cookies()
        told = []
        for _ in range(VISITS):  # each with a connection of its own: whoever is free takes it
            with httpx.Client(cookies=jar, timeout=60) as browser:
                told.append(browser.get(address).text)
                jar.update(browser.cookies)
        assert told == [f"{count} items" for count in range(1, VISITS + 1)]
        if line.startswith("granian"):  # its other worker may still start, which is the next test's matter
            while log.read_text().count("Started worker-") < 2:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        server.terminate()
        server.wait(DEADLINE_S)
        assert "Traceback" not in log.read_text(), log.read_text()
        assert "Killing worker-" not in log.read_text(), log.read_text()
    finally:
        ended(server)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("granian")])
def test_granian_ends_although_a_worker_still_starts(line: str, tmp_path: Path) -> None:
    module = line.split()[-1].partition(":")[0]
    (tmp_path / "slow_shop.py").write_text(SLOW_SHOP.format(module=module))
    line = line.replace(f"{module}:app", "slow_shop:app").replace("timeout 30", "timeout 1")
    server, address, log = started(line, tmp_path)
    try:
        until_answered(server, address, log)
        while not (tmp_path / "second").exists():
            assert server.poll() is None, log.read_text()
            time.sleep(0.01)
        server.terminate()
        assert server.wait(DEADLINE_S) == 0, log.read_text()
        assert "Killing worker-" in log.read_text()
    finally:
        ended(server)


def started(line: str, folder: Path) -> tuple[subprocess.Popen[bytes], str, Path]:
    """The server of the command ``line`` in ``folder`` with the page's files, its address, and its log."""
    for name, text in FILE.findall(PAGE):
        (folder / name).write_text(text)
    port = free_port()
    command = [sys.executable, "-m", *(word.replace("8000", str(port)) for word in line.split())]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"SESSION_KEY": KEY, "PYTHONPATH": str(SOURCE)},
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    return server, f"http://127.0.0.1:{port}/", log


def until_answered(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            httpx.get(address, timeout=30)
            return
        except httpx.TransportError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() - began < DEADLINE_S, log.read_text()
            time.sleep(0.1)


def ended(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, 9)
        server.wait(DEADLINE_S)
