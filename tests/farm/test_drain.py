"""Draining takes a web server out of a busy farm, and no request notices."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from .farm_process import Farm, eventually

BROWSERS = 12


class Browsing:
    """Browsers that post and get all the time, and count what went wrong."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._over = threading.Event()
        self.requests = 0
        self.problems: list[str] = []
        self._watch = 0
        self.servers: set[str] = set()
        """The web servers that answered requests of this watch."""

    def __enter__(self) -> Browsing:
        self._pool = ThreadPoolExecutor(BROWSERS)
        self._runs = [self._pool.submit(self._browse, n) for n in range(BROWSERS)]
        return self

    def watch_anew(self) -> None:
        """From here on ``servers`` knows only who answers requests that are yet to be sent."""
        self._watch += 1
        self.servers = set()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for run in self._runs:
            run.result(60)
        self._pool.shutdown()

    def _browse(self, number: int) -> None:
        with httpx.Client(base_url=self._base, timeout=30) as browser:
            expected = 0
            while not self._over.is_set():
                expected += 1
                watch, servers = self._watch, self.servers
                # POST is never repeated by a director: a cut one would fail.
                answer = browser.request("POST" if expected % 2 else "GET", "/")
                self.requests += 1
                if answer.status_code != 200 or answer.json()["count"] != expected:
                    self.problems.append(f"browser {number}: {answer.status_code} {answer.text}, not {expected}")
                    return
                if watch == self._watch:
                    servers.add(answer.json()["server"])
                time.sleep(0.05)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_drain_under_load_fails_no_request(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "3", "--director-workers", "2", "--server", server)
    with Browsing(running.base) as browsing:
        eventually(lambda: browsing.servers == {"web-1", "web-2", "web-3"}, "the use of all web servers")
        for name in ("web-2", "web-1"):
            done = running.run("drain", name)
            assert done.returncode == 0, done.stderr
            assert f"{name} is drained and stopped" in done.stdout
            row = next(row for row in running.status()["web_servers"] if row["name"] == name)
            assert (row["state"], row["healthy"], row["pid"]) == ("drained", False, None)
            browsing.watch_anew()
            eventually(lambda: browsing.servers, "requests elsewhere")
            assert name not in browsing.servers
        assert running.run("admit", "web-2").returncode == 0
        assert running.run("admit", "web-1").returncode == 0
        enough = browsing.requests + 100
        eventually(lambda: browsing.problems or browsing.requests > enough, "requests with all web servers again")
    assert browsing.problems == []
    assert running.healthy_status()["restarts"] == 0


def test_drain_waits_for_open_requests_and_then_says_so(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=running.base, timeout=60) as browser:
        name = browser.get("/").json()["server"]
        held = pool.submit(browser.get, "/held")
        eventually(lambda: "a request is held" in running.log, "the open request")
        for timeout in ("0", "300ms"):
            early = running.run("drain", name, "--timeout", timeout)
            assert early.returncode == 1
            assert f"{name} still has 1 open requests" in early.stderr
        drained = pool.submit(running.run, "drain", name)
        time.sleep(1)
        assert not held.done()
        assert not drained.done()
        (running.directory / "release").touch()
        assert drained.result(60).returncode == 0, drained.result().stderr
        assert held.result(60).json() == {"slow": 1, "server": name}


def test_drain_called_off(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=running.base, timeout=60) as browser:
        name = browser.get("/").json()["server"]
        held = pool.submit(browser.get, "/held")
        eventually(lambda: "a request is held" in running.log, "the open request")
        assert running.run("drain", name, "--timeout", "0.2").returncode == 1
        assert running.run("admit", name).returncode == 0
        (running.directory / "release").touch()
        assert held.result(60).status_code == 200
        eventually(lambda: browser.get("/").json()["server"] == name, "requests to it again")


def test_what_cannot_be_drained(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    unknown = running.run("drain", "web-9")
    assert unknown.returncode == 1
    assert unknown.stderr == "coatcheck: there is no web server 'web-9'; choose one of web-1\n"
    last = running.run("drain", "web-1")
    assert last.returncode == 1
    assert "the last web server that takes requests" in last.stderr
    assert running.run("drain", "web-1", "--timeout", "soon").returncode == 2
    assert httpx.get(running.base).status_code == 200


def test_a_restarted_director_keeps_out_what_is_drained(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    assert running.run("drain", "web-1").returncode == 0
    old = running.pid("director-1")
    import os
    import signal

    os.kill(old, signal.SIGKILL)
    running.wait_replaced("director-1", old)
    details = eventually(lambda: running.status()["director"][0]["details"], "an answer of the director")
    assert {row["name"]: row["draining"] for row in details["servers"]} == {"web-1": True, "web-2": False}
    assert {httpx.get(running.base).json()["server"] for _ in range(6)} == {"web-2"}


TALK = """
import os
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

async def talk(websocket):
    await websocket.accept()
    await websocket.send_text(os.environ["COATCHECK_SERVER"])
    async for text in websocket.iter_text():
        await websocket.send_text(text + "!")

app = Starlette(routes=[WebSocketRoute("/", talk)])
"""


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_websockets_are_asked_to_connect_elsewhere(farm: Callable[..., Farm], tmp_path: Path, server: str) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    running = farm("--web", "2", "--server", server, app="talk:app")
    address = running.base.replace("http", "ws")
    with connect(address) as websocket:
        name = websocket.recv(60)
        websocket.send("a")
        assert websocket.recv(60) == "a!"
        done = running.run("drain", name, "--timeout", "60s")
        assert done.returncode == 0, done.stderr
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    with connect(address) as websocket:
        assert websocket.recv(60) != name
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert running.process.wait(60) == 0
    assert "Traceback" not in running.log
