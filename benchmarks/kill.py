"""What browsers notice when a process of the farm is killed (``kill -9``) under load.

A whole farm as its user starts it: the director, three web servers, two session servers (embedded, then Redis).
Browsers read and write without a pause through the director; each victim is killed in turn and comes back. Usage::

    python -m benchmarks.kill [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.processes import OTHER_CORE, ROOT, Processes, environment, free_port
from benchmarks.report import table, write_section
from coatcheck.demo.browser import BrowserError, ShopBrowser

COATCHECK = [sys.executable, "-m", "coatcheck.cli"]
FARM_TIMEOUT_S = 60.0
WEB_SERVERS = 3
BEFORE_S = 1.5
AFTER_S = 4.0
REDIS_AWAY_S = 1.0
NOTICED_S = 0.1
THINK_S = 0.01
"""Between the requests of a browser: the load stays below what two cores can do, or waiting would be queueing."""


@dataclass
class Answered:
    """One request: when it was sent and answered (monotonic seconds), and whether the answer was 200."""

    method: str
    sent_at: float
    answered_at: float
    good: bool

    @property
    def took_s(self) -> float:
        return self.answered_at - self.sent_at


@dataclass
class Kill:
    """What the browsers saw around one kill."""

    at: float
    answered: list[Answered] = field(default_factory=list)

    def around(self) -> list[Answered]:
        return [each for each in self.answered if each.answered_at >= self.at]

    def usual_s(self) -> float:
        """The slowest usual response: the 99th percentile before the kill."""
        before = sorted(each.took_s for each in self.answered if each.answered_at < self.at)
        return before[int(len(before) * 0.99)]

    def failed(self, method: str) -> int:
        return sum(not each.good for each in self.around() if each.method == method)

    def slowest_s(self, method: str) -> float:
        return max((each.took_s for each in self.around() if each.method == method), default=0.0)

    def affected_s(self) -> float:
        """From the kill to the end of the last response that failed, or took 0.1 s and three times the usual."""
        limit_s = max(NOTICED_S, 3 * self.usual_s())
        ends = [each.answered_at for each in self.around() if not each.good or each.took_s > limit_s]
        return max(ends, default=self.at) - self.at


class Visitor:
    """A browser that counts what it was told is stored."""

    def __init__(self, port: int) -> None:
        self.browser = ShopBrowser("127.0.0.1", port)
        self.acknowledged = 0
        self.unknown = 0

    async def visit(self, method: str, path: str) -> Answered:
        sent_at = time.monotonic()
        try:
            status, _ = await self.browser.request(method, path)
        except BrowserError:
            status = 0
        good = status == 200
        if path == "/rw":
            self.acknowledged += good
            self.unknown += not good
        return Answered(method, sent_at, time.monotonic(), good)

    async def go_on(self, seen: list[Answered], over: asyncio.Event) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            method, path = ("POST", "/rw") if turn % 2 else ("GET", "/ro")
            seen.append(await self.visit(method, path))
            await asyncio.sleep(THINK_S)

    async def lost(self) -> bool:
        """Whether the session forgot a write that was acknowledged, or counts one that was never sent."""
        status, count = await self.browser.request("GET", "/count")
        return status != 200 or not self.acknowledged <= count <= self.acknowledged + self.unknown


class Farm:
    """``coatcheck serve`` in a run directory of its own; ended by its pid."""

    def __init__(self, run_dir: Path, session_servers: list[str]) -> None:
        self.port = free_port()
        self._run_dir = run_dir
        command = [*COATCHECK, "serve", "benchmarks.apps:counter", "--factory", "--web", str(WEB_SERVERS)]
        command += ["--port", str(self.port), "--run-dir", str(run_dir), *session_servers]
        log = (run_dir / "farm.log").open("wb")
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)

    def status(self) -> dict[str, list[dict[str, object]]]:
        command = [*COATCHECK, "status", "--json", "--run-dir", str(self._run_dir)]
        done = subprocess.run(command, env=environment(), capture_output=True, timeout=FARM_TIMEOUT_S, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def pid(self, name: str) -> int:
        rows = [row for rows in self.status().values() if isinstance(rows, list) for row in rows]
        return next(int(str(row["pid"])) for row in rows if row["name"] == name)

    def wait_whole(self) -> None:
        deadline = time.monotonic() + FARM_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            status = self.status()
            rows = status.get("director", []) + status.get("web_servers", []) + status.get("session_servers", [])
            whole = all(row["healthy"] for row in rows)
            if len(status.get("web_servers", [])) == WEB_SERVERS and status.get("session_servers") and whole:
                return
            time.sleep(0.3)
        raise RuntimeError("the farm is not whole:\n" + (self._run_dir / "farm.log").read_text()[-2000:])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(FARM_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


async def around_a_kill(visitors: list[Visitor], kill: Callable[[], None]) -> Kill:
    seen: list[Answered] = []
    over = asyncio.Event()
    visits = [asyncio.create_task(visitor.go_on(seen, over)) for visitor in visitors]
    await asyncio.sleep(BEFORE_S)
    at = time.monotonic()
    await asyncio.to_thread(kill)
    await asyncio.sleep(AFTER_S)
    over.set()
    await asyncio.gather(*visits)
    return Kill(at, seen)


async def measure(farm: Farm, victims: list[Callable[[], Callable[[], None]]], browsers: int) -> tuple[list[Kill], int]:
    """A kill of each victim in turn; answers what was seen and how many sessions lost anything."""
    visitors = [Visitor(farm.port) for _ in range(browsers)]
    for visitor in visitors:
        if not (await visitor.visit("POST", "/start")).good:
            raise RuntimeError("a session could not be started")
    kills = []
    for victim in victims:
        await asyncio.to_thread(farm.wait_whole)
        kill = await asyncio.to_thread(victim)
        kills.append(await around_a_kill(visitors, kill))
    await asyncio.to_thread(farm.wait_whole)
    lost = 0
    for visitor in visitors:
        lost += await visitor.lost()
        await visitor.browser.aclose()
    return kills, lost


def killer(pid: int) -> Callable[[], None]:
    return lambda: os.kill(pid, signal.SIGKILL)


def redis_killer(processes: Processes, name: str, port: int) -> Callable[[], None]:
    def kill() -> None:
        processes.kill(name)
        time.sleep(REDIS_AWAY_S)
        processes.start_redis(name, port=port)

    return kill


def scenario(kind: str, what: str, kills: int, browsers: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, Processes() as processes:
        options = ["--session-servers", "2"]
        ports = {}
        if kind == "Redis":
            ports = {name: processes.start_redis(name, OTHER_CORE)[0] for name in ("session-1", "session-2")}
            options = [part for port in ports.values() for part in ("--session-server", f"redis://127.0.0.1:{port}")]
        farm = Farm(Path(folder), options)
        try:
            farm.wait_whole()
            names = [f"{what}-{number % 2 + 1}" for number in range(kills)]
            victims: list[Callable[[], Callable[[], None]]] = [
                (lambda name=name: redis_killer(processes, name, ports[name]))
                if name in ports
                else (lambda name=name: killer(farm.pid(name)))
                for name in names
            ]
            seen, lost = asyncio.run(measure(farm, victims, browsers))
        finally:
            farm.stop()
    return describe(kind, what, seen, lost)


def describe(kind: str, what: str, kills: list[Kill], lost: int) -> list[str]:
    gets = sum(each.method == "GET" for kill in kills for each in kill.around())
    posts = sum(each.method == "POST" for kill in kills for each in kill.around())
    return [
        f"{'web server' if what == 'web' else 'session server'}, sessions on {kind}",
        str(len(kills)),
        f"{sum(kill.failed('GET') for kill in kills)} of {gets}",
        f"{sum(kill.failed('POST') for kill in kills)} of {posts}",
        f"{max(kill.slowest_s('GET') for kill in kills) * 1e3:.0f}",
        f"{max(kill.slowest_s('POST') for kill in kills) * 1e3:.0f}",
        f"{median(kill.usual_s() for kill in kills) * 1e3:.0f}",
        f"{median(kill.affected_s() for kill in kills) * 1e3:.0f}",
        str(lost),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two kills each instead of six")
    parser.add_argument("--browsers", type=int, default=32)
    parser.add_argument("--write-results", action="store_true", help="renew the table in RESULTS.md")
    options = parser.parse_args()
    rows = []
    for kind in ("session servers of ours", "Redis"):
        for what in ("web", "session"):
            rows.append(scenario(kind, what, 2 if options.quick else 6, options.browsers))
            print(rows[-1], file=sys.stderr, flush=True)
    heads = [
        "killed", "kills", "failed GETs", "failed POSTs", "slowest GET (ms)", "slowest POST (ms)",
        "p99 before (ms)", "until the last affected response (ms)", "sessions that lost a write",
    ]  # fmt: skip
    text = table(heads, rows)
    print(text)
    if options.write_results:
        write_section("kill", text)


if __name__ == "__main__":
    main()
