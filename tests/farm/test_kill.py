"""Web servers and session servers are killed and frozen under load: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ports import free_port

from .farm_process import Farm
from .kill_crowd import KILL_APP, KILL_WSGI_APP, Seen, Shopper, for_a_while, freeze, shop, whole

BROWSERS = 200
SECONDS = 12.0
REQUESTS = 1_500
ACKNOWLEDGED = 500
"""Of the requests of a crowd about half change something, and few of those may fail."""
FREEZE_S = 1.5
FORBIDDEN = ("session.theft", "session.rolled_back", "session.forked", "session.not_found", "session.dead_token")

pytestmark = [pytest.mark.serial]
StartFarm = Callable[..., Farm]


@pytest.fixture
def start(tmp_path: Path, farm: StartFarm) -> StartFarm:
    (tmp_path / "killing.py").write_text(KILL_APP)
    return lambda *arguments: farm("--web", "3", *arguments, app="killing:app")


class RedisServers:
    """Two real Redis servers without persistence: killed means empty."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = [free_port(), free_port()]
        self.processes = [self._start(port) for port in self.ports]

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return subprocess.Popen([*command, "--dir", str(self.directory)], stdout=subprocess.DEVNULL)

    @property
    def flags(self) -> list[str]:
        return [part for port in self.ports for part in ("--session-server", f"redis://127.0.0.1:{port}")]

    async def kill(self, index: int) -> None:
        self.processes[index].kill()
        self.processes[index].wait(30)
        await asyncio.sleep(1.0)
        self.processes[index] = self._start(self.ports[index])

    def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(30)


@pytest.fixture
def redis_servers(tmp_path: Path) -> Iterator[RedisServers]:
    servers = RedisServers(tmp_path)
    yield servers
    servers.end()


def crowd_of(farm: Farm, count: int = BROWSERS, kind: type[Shopper] = Shopper) -> list[Shopper]:
    host, port = farm.note()["address"].rsplit(":", 1)
    return [kind(number, host, int(port)) for number in range(count)]


async def arrive(crowd: list[Shopper]) -> None:
    for start in range(0, len(crowd), 32):
        await asyncio.gather(*(shopper.login() for shopper in crowd[start : start + 32]))


async def judge(farm: Farm, crowd: list[Shopper], seen: Seen, acknowledged: int = ACKNOWLEDGED) -> None:
    """At the end every acknowledged increment is there, and nobody was accused of anything."""
    await whole(farm)
    final = Seen()
    for start in range(0, len(crowd), 32):
        await asyncio.gather(*(shopper.get(final) for shopper in crowd[start : start + 32]))
    assert final.bad_gets == []
    assert seen.bad_gets == []
    assert sum(len(shopper.acknowledged) for shopper in crowd) >= acknowledged
    for shopper in crowd:
        await shopper.browser.aclose()
    log = farm.log
    assert [line for line in log.splitlines() if any(name in line for name in FORBIDDEN)] == []
    print(f"gets {seen.gets}, posts {seen.posts} ({seen.failed_posts} failed), slowest get {seen.slowest_get_s:.3f} s")


async def kill(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)


async def go_round(farm: Farm, steps: list[tuple[str, Callable[[], object]]], seconds: float) -> None:
    """One victim after the other, each once at least; the farm is whole again before the next one."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until or not rounds:
        for _name, step in steps:
            if rounds and time.monotonic() > until:
                break
            await step()  # type: ignore[misc]
            await asyncio.sleep(0.3)
            await whole(farm)
        rounds += 1


async def under_load(farm: Farm, steps: list[tuple[str, Callable[[], object]]]) -> None:
    crowd, seen = crowd_of(farm), Seen()
    await arrive(crowd)
    enough = for_a_while(seen, SECONDS, REQUESTS)
    killer = asyncio.create_task(go_round(farm, steps, SECONDS))
    await shop(crowd, seen, lambda: killer.done() and (killer.exception() is not None or enough()))
    await killer
    await judge(farm, crowd, seen)


def test_kill_and_freeze_with_embedded_session_servers(start: StartFarm) -> None:
    farm = start("--session-servers", "2")
    steps: list[tuple[str, Callable[[], object]]] = [
        ("kill web-1", lambda: kill(farm, "web-1")),
        ("freeze session-1", lambda: freeze(farm.pid("session-1"), FREEZE_S)),
        ("kill session-2", lambda: kill(farm, "session-2")),
        ("freeze web-2", lambda: freeze(farm.pid("web-2"), FREEZE_S)),
        ("kill web-3", lambda: kill(farm, "web-3")),
        ("kill session-1", lambda: kill(farm, "session-1")),
    ]
    asyncio.run(under_load(farm, steps))


def test_kill_and_freeze_with_a_wsgi_app(tmp_path: Path, start: StartFarm) -> None:
    """Its requests run in threads, and nothing else is different."""
    (tmp_path / "killing.py").write_text(KILL_WSGI_APP)
    farm = start("--session-servers", "2", "--threads", "4")
    steps: list[tuple[str, Callable[[], object]]] = [
        ("kill web-1", lambda: kill(farm, "web-1")),
        ("freeze web-2", lambda: freeze(farm.pid("web-2"), FREEZE_S)),
        ("kill session-2", lambda: kill(farm, "session-2")),
        ("kill web-3", lambda: kill(farm, "web-3")),
    ]
    asyncio.run(under_load(farm, steps))


def test_kill_and_freeze_with_redis(start: StartFarm, redis_servers: RedisServers) -> None:
    farm = start(*redis_servers.flags)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("kill web-1", lambda: kill(farm, "web-1")),
        ("kill redis 1", lambda: redis_servers.kill(0)),
        ("freeze redis 2", lambda: freeze(redis_servers.processes[1].pid, FREEZE_S)),
        ("freeze web-2", lambda: freeze(farm.pid("web-2"), FREEZE_S)),
        ("kill redis 2", lambda: redis_servers.kill(1)),
    ]
    asyncio.run(under_load(farm, steps))


def test_both_session_servers_killed_at_once_sessions_come_back_from_the_caches(start: StartFarm) -> None:
    farm = start("--session-servers", "2")

    async def story() -> None:
        crowd, seen = crowd_of(farm, 60), Seen()
        await arrive(crowd)
        await shop(crowd, seen, for_a_while(seen, 2.0, REQUESTS))
        pids = [farm.pid("session-1"), farm.pid("session-2")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for name, pid in zip(("session-1", "session-2"), pids, strict=True):
            await asyncio.to_thread(farm.wait_replaced, name, pid)
        await whole(farm)
        later = Seen()
        await shop(crowd, later, for_a_while(later, 1.0, 100))
        await judge(farm, crowd, seen)

    asyncio.run(story())


def test_a_web_server_and_a_session_server_killed_at_once(start: StartFarm) -> None:
    farm = start("--session-servers", "2")

    async def story() -> None:
        crowd, seen, later = crowd_of(farm, 60), Seen(), Seen()
        await arrive(crowd)
        await shop(crowd, seen, for_a_while(seen, 2.0, REQUESTS))
        pids = {name: farm.pid(name) for name in ("web-1", "session-1")}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        await shop(crowd, later, for_a_while(later, 3.0, 100))
        for name, pid in pids.items():
            await asyncio.to_thread(farm.wait_replaced, name, pid)
        assert later.bad_gets == []
        await judge(farm, crowd, seen)
        assert farm.healthy_status()

    asyncio.run(story())
