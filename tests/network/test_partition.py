"""A partition between real processes: two web servers, three Redis, every link through a proxy that can be cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ports import LOOPBACK, free_port
from web.server_process import WebServer

from .cuttable import Link, Network

SERVERS = ("r1", "r2", "r3")
USERS = 6
LEASE_S = 2.0
DEADLINE_S = 60.0
"""For whatever must come in the end: it costs nothing when things go well."""


class PartedFarm:
    """``links[web, session server]`` is the proxy between the two."""

    def __init__(self, network: Network, folder: Path, **options: Any) -> None:
        self.network = network
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        assert program is not None, "redis-server is missing: apt-get install redis-server"
        self._processes = []
        self.links: dict[tuple[str, str], Link] = {}
        for name in SERVERS:
            port = free_port()
            words = ["--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no", "--dir", str(folder)]
            log = (folder / f"{name}.log").open("wb")
            self._processes.append(subprocess.Popen([program, *words], stdout=log, stderr=log))
            self.links |= {(web, name): network.link(port) for web in "ab"}
        self.webs = {}
        for web in "ab":
            urls = " ".join(f"{name}=redis://{LOOPBACK}:{self.links[web, name].port}" for name in SERVERS)
            environment = {"SESSION_SERVERS": urls, "OPTIONS": json.dumps(options)}
            self.webs[web] = WebServer(f"uvicorn-{web}", folder, "network.app:app", **environment)

    def stop(self) -> None:
        self.network.heal(self.links.values())
        for web in self.webs.values():
            web.stop()
        for process in self._processes:
            process.kill()
            process.wait()

    def part(self) -> None:
        """{a, r3} | {b, r1, r2}."""
        self.network.cut(link for (web, name), link in self.links.items() if (web == "a") != (name == "r3"))

    def heal(self) -> None:
        self.network.heal(self.links.values())

    def events(self, web: str) -> dict[str, int]:
        found: dict[str, int] = httpx.get(f"http://{self.webs[web].address}/events", timeout=30).json()
        return found


class Browser:
    """One user: its cookies, and the count that was acknowledged last; ``offered`` may have come through besides."""

    def __init__(self, farm: PartedFarm) -> None:
        self._farm = farm
        self._client = httpx.Client(timeout=30)
        self.acknowledged = self.offered = 0

    def ask(self, method: str, web: str, path: str) -> httpx.Response:
        return self._client.request(method, f"http://{self._farm.webs[web].address}{path}")

    def count(self, web: str) -> int:
        """The status of a write."""
        self.offered += 1
        answer = self.ask("POST", web, "/count")
        if answer.status_code == 200:
            self.acknowledged = self.offered = answer.json()
        return answer.status_code

    def finds(self, web: str) -> int | None:
        """What a read gives: the count, ``None`` without a session, or minus the status of a refusal."""
        answer = self.ask("GET", web, "/")
        found: int | None = answer.json() if answer.status_code == 200 else -answer.status_code
        return found

    def has_all(self, web: str) -> bool:
        found = self.finds(web)
        return found is not None and self.acknowledged <= found <= self.offered


def until(check: Any, what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.fixture(params=[{}, {"below_target": "degrade"}], ids=["default settings", "degrade"])
def farm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PartedFarm]:
    with Network() as network:
        farm = PartedFarm(network, tmp_path, **request.param)
        try:
            yield farm
        finally:
            farm.stop()


def test_a_partition_logs_nobody_out_and_loses_nothing(farm: PartedFarm) -> None:
    browsers = [Browser(farm) for _ in range(USERS)]
    for browser in browsers:
        until(lambda browser=browser: browser.count("a") == 200, "a whole farm takes writes")
    farm.part()
    for browser in browsers:
        assert browser.count("a") in (200, 503)
    time.sleep(LEASE_S)
    for browser in browsers:
        found = browser.finds("b")
        assert found == -503 or (found is not None and browser.acknowledged <= found <= browser.offered)
    assert "session.rolled_back" not in farm.events("b")
    farm.heal()
    for browser in browsers:
        for web in "ba":
            until(lambda browser=browser, web=web: browser.has_all(web), f"its session comes back at {web}")
    for web in "ab":
        assert not farm.events(web).keys() & {"session.rolled_back", "session.not_found", "session.expired"}
    for browser in browsers:
        assert browser.count("a") == 200
        assert browser.ask("POST", "b", "/logout").status_code == 200
        assert browser.finds("a") is None
