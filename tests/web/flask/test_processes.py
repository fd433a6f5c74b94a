"""Flask apps under gunicorn's threads, in processes of their own, with one SQLite file for the sessions of all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import coatcheck.errors
from ports import free_port

TESTS = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
DEADLINE_S = 60.0


@contextmanager
def gunicorn(tmp_path: Path, workers: int) -> Iterator[str]:
    port = free_port()
    log = tmp_path / f"gunicorn-{port}.log"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--worker-class", "gthread", "--threads", "4"]
    command += ["--workers", str(workers), "--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(tmp_path)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "web.flask.shop_app:app"], stdout=out, stderr=out, cwd=tmp_path,
            env=os.environ | {"SESSION_SERVER": f"sqlite:///{tmp_path}/s.db", "PYTHONPATH": f"{TESTS}:{SOURCE}"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
                break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(DEADLINE_S)
    assert "Traceback" not in log.read_text(), log.read_text()


class Browser:
    """Opens a connection of its own for each request, so that any worker may take it."""

    def __init__(self) -> None:
        self.jar = httpx.Cookies()

    def ask(self, method: str, url: str) -> Any:
        with httpx.Client(cookies=self.jar, timeout=60) as client:
            answer = client.request(method, url)
            self.jar = client.cookies
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.headers["content-type"] == "application/json" else None

    def count(self, server: str) -> Any:
        """As browsers do: asked again if the server hung up before it answered."""
        while True:
            try:
                return self.ask("POST", f"{server}/count")
            except httpx.TransportError:
                time.sleep(0.05)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(gunicorn(tmp_path, workers)) for workers in (2, 1)]


def test_a_login_on_one_server_is_seen_on_the_other_and_ends_on_both(servers: list[str]) -> None:
    here, there = servers
    browser = Browser()
    browser.ask("POST", f"{here}/login/ada")
    for n in range(1, 7):
        seen = browser.ask("POST", f"{(there, here)[n % 2]}/count")
        assert (seen["user"], seen["n"], seen["word"]) == ("ada", n, "times")
    stolen = Browser()
    stolen.jar = httpx.Cookies(browser.jar)
    browser.ask("POST", f"{there}/logout")
    for server in servers:
        assert stolen.ask("GET", f"{server}/")["user"] is None


def test_a_killed_worker_takes_no_session_along(servers: list[str]) -> None:
    here = servers[0]
    browser = Browser()
    browser.ask("POST", f"{here}/login/ada")
    told, killed = 0, set[int]()
    deadline = time.monotonic() + DEADLINE_S
    while len(killed) < 3 or told < 30:
        assert time.monotonic() < deadline
        seen = browser.count(here)
        assert seen["user"] == "ada"
        assert seen["n"] > told, "what was told is kept"
        told = seen["n"]
        if told % 5 == 0 and seen["pid"] not in killed:
            os.kill(seen["pid"], signal.SIGKILL)
            killed.add(seen["pid"])
    assert browser.ask("GET", f"{here}/")["user"] == "ada"
