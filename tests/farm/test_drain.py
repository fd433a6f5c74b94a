"""Draining takes a web server out of a busy farm, and no request notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .farm_process import Farm, eventually

BROWSERS = 12


class Browsing:
    """Browsers that post and get without pause, and count what went wrong."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._over = threading.Event()
        self.requests = 0
        self.problems: list[str] = []
        self.servers: set[str] = set()

    def __enter__(self) -> Browsing:
        self._pool = ThreadPoolExecutor(BROWSERS)
        self._runs = [self._pool.submit(self._browse, n) for n in range(BROWSERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for run in self._runs:
            run.result(30)
        self._pool.shutdown()

    def _browse(self, number: int) -> None:
        with httpx.Client(base_url=self._base, timeout=30) as browser:
            expected = 0
            while not self._over.is_set():
                expected += 1
                # POST is never repeated by a director: a cut one would fail.
                answer = browser.request("POST" if expected % 2 else "GET", "/")
                self.requests += 1
                if answer.status_code != 200 or answer.json()["count"] != expected:
                    self.problems.append(f"browser {number}: {answer.status_code} {answer.text}, not {expected}")
                    return
                self.servers.add(answer.json()["server"])
                time.sleep(0.005)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_drain_under_load_fails_no_request(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "3", "--director-workers", "2", "--server", server)
    with Browsing(running.base) as browsing:
        eventually(lambda: browsing.servers == {"web-1", "web-2", "web-3"}, 10, "the use of all web servers")
        for name in ("web-2", "web-1"):
            done = running.run("drain", name)
            assert done.returncode == 0, done.stderr
            assert f"{name} is drained and stopped" in done.stdout
            row = next(row for row in running.status()["web_servers"] if row["name"] == name)
            assert (row["state"], row["healthy"], row["pid"]) == ("drained", False, None)
            browsing.servers.clear()
            eventually(lambda: browsing.servers, 5, "requests elsewhere")
            assert name not in browsing.servers
        assert running.run("admit", "web-2").returncode == 0
        assert running.run("undrain", "web-1").returncode == 0
        time.sleep(1)
    assert browsing.problems == []
    assert browsing.requests > 100
    status = running.status()
    assert all(row["healthy"] for row in status["web_servers"])
    assert status["restarts"] == 0


def test_drain_waits_for_open_requests_and_then_says_so(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=running.base, timeout=30) as browser:
        name = browser.get("/").json()["server"]
        slow = pool.submit(browser.get, "/slow?s=3.5")
        time.sleep(0.4)
        for timeout in ("0", "300ms"):
            early = running.run("drain", name, "--timeout", timeout)
            assert early.returncode == 1
            assert f"{name} still has 1 open requests" in early.stderr
        done = running.run("drain", name)
        assert done.returncode == 0, done.stderr
        assert slow.result(10).json() == {"slow": 1, "server": name}


def test_drain_called_off(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=running.base, timeout=30) as browser:
        name = browser.get("/").json()["server"]
        slow = pool.submit(browser.get, "/slow?s=2")
        time.sleep(0.4)
        assert running.run("drain", name, "--timeout", "0.2").returncode == 1
        assert running.run("admit", name).returncode == 0
        assert slow.result(10).status_code == 200
        eventually(lambda: browser.get("/").json()["server"] == name, 5, "requests to it again")


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
    details = running.status()["director"][0]["details"]
    assert {row["name"]: row["draining"] for row in details["servers"]} == {"web-1": True, "web-2": False}
    assert {httpx.get(running.base).json()["server"] for _ in range(6)} == {"web-2"}
