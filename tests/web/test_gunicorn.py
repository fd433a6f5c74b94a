"""gunicorn with ``--preload``: workers forked from one process are web servers of their own all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import coatcheck.errors
from ports import free_port

TESTS = Path(__file__).parents[1]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
WORKERS = 3
DEADLINE_S = 60.0


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(DEADLINE_S)


@pytest.fixture(params=["sqlite", "redis"])
def session_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/sessions.db"
        return
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    assert program is not None, "redis-server is missing: apt-get install redis-server"
    port = free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        stop(process)


@pytest.fixture
def address(session_server: str, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    log = tmp_path / "gunicorn.log"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}"]
    command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--worker-tmp-dir", str(tmp_path)]
    path = f"{TESTS}:{SOURCE}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "web.preload_app:app"], stdout=out, stderr=out, cwd=tmp_path,
            env=os.environ | {"SESSION_SERVER": session_server, "PYTHONPATH": path},
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
        yield f"http://127.0.0.1:{port}/"
    finally:
        stop(process)
    assert "Traceback" not in log.read_text(), log.read_text()


def visit(address: str, jar: httpx.Cookies) -> dict[str, Any]:
    """With a connection of its own, so that any worker may take it."""
    with httpx.Client(cookies=jar, timeout=60) as browser:
        answer = browser.post(address)
        jar.update(browser.cookies)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def test_each_forked_worker_is_a_web_server_of_its_own(address: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    workers: dict[int, str] = {}
    with ThreadPoolExecutor(8) as pool:
        while len(workers) < WORKERS:  # whoever is free takes the next connection
            for seen in pool.map(lambda _: visit(address, httpx.Cookies()), range(24)):
                assert workers.setdefault(seen["pid"], seen["id"]) == seen["id"]
                assert int(seen["made"]) != seen["pid"], "made before the fork"
            assert time.monotonic() < deadline, workers
    assert len(set(workers.values())) == WORKERS, f"workers share a server ID: {workers}"


def test_a_session_goes_from_worker_to_worker(address: str) -> None:
    jar = httpx.Cookies()
    visits = [visit(address, jar) for _ in range(40)]
    assert [seen["n"] for seen in visits] == list(range(1, 41))
