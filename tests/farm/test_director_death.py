"""The death of a director costs its open connections and nothing else: whoever comes meanwhile waits for the next."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable

import msgspec
import pytest

from .farm_process import Farm, alive, eventually

VISITORS = 24
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

StartFarm = Callable[..., Farm]


class Visit(msgspec.Struct):
    """One connection with one request."""

    began: float
    connected: bool = False
    status: bytes = b""
    took_s: float = 0.0


async def visit(host: str, port: int) -> Visit:
    seen = Visit(time.monotonic())
    try:
        reader, writer = await asyncio.open_connection(host, port)
        seen.connected = True
        writer.write(GET)
        seen.status = (await reader.read())[9:12]
        writer.close()
    except OSError:
        pass
    seen.took_s = time.monotonic() - seen.began
    return seen


async def visitors(farm: Farm, over: asyncio.Event) -> list[Visit]:
    """Newcomers all the time, each with a connection of its own."""
    host, port = farm.note()["address"].rsplit(":", 1)
    seen: list[Visit] = []

    async def come() -> None:
        while not over.is_set():
            seen.append(await visit(host, int(port)))

    await asyncio.gather(*(come() for _ in range(VISITORS)))
    return seen


@pytest.mark.parametrize("workers", [1, 2])
def test_no_connection_is_refused_when_a_director_is_killed(farm: StartFarm, workers: int) -> None:
    running = farm("--director-workers", str(workers))

    async def story() -> None:
        over = asyncio.Event()
        coming = asyncio.create_task(visitors(running, over))
        deaths: list[tuple[float, float]] = []
        for _ in range(2):
            await asyncio.sleep(0.5)
            pid = running.pid("director-1")
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(eventually, lambda pid=pid: not alive(pid), "the death")
            deaths.append((killed, time.monotonic()))
            await asyncio.to_thread(running.wait_replaced, "director-1", pid)
        await asyncio.sleep(0.5)
        over.set()
        seen = await coming
        assert all(each.connected for each in seen), "a connection was refused"
        failed = [each for each in seen if each.status != b"200"]
        for each in failed:
            assert any(each.began <= gone and each.began + each.took_s >= killed for killed, gone in deaths), (
                "only what the dead director had taken may fail"
            )
        assert len(failed) <= len(deaths) * VISITORS
        assert len(seen) > 4 * VISITORS

    asyncio.run(story())


def test_nobody_else_can_listen_beside_the_farm(farm: StartFarm) -> None:
    running = farm("--director-workers", "2")
    host, port = running.note()["address"].rsplit(":", 1)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind((host, int(port)))
                thief.listen(1)


def test_after_a_stop_connections_are_refused_at_once(farm: StartFarm) -> None:
    running = farm()
    host, port = running.note()["address"].rsplit(":", 1)
    with socket.create_connection((host, int(port))) as busy:
        # A request that is under way keeps the stop from being over.
        busy.sendall(b"GET /slow?s=3 HTTP/1.1\r\nHost: a\r\n\r\n")
        eventually(lambda: "a slow request has begun" in running.log, "the request")
        running.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except ConnectionRefusedError:
                return True
            return False

        eventually(refused, "the end of new connections")
        assert running.process.poll() is None, "and meanwhile what was begun is finished"
        assert busy.recv(12) == b"HTTP/1.1 200"
    assert running.process.wait(60) == 0
