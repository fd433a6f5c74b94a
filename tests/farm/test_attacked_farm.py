"""A farm with its default bounds while one address opens thousands of connections: everybody else is served."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from .farm_process import Farm, eventually

ATTACKS = 2000
HONEST = 8
SHARE = 1024
"""The default of ``max_connections_per_address``."""
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for the attacker's own ends."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ATTACKS + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    elif soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def browse(host: str, port: int, over: asyncio.Event, statuses: list[int]) -> None:
    """A browser that comes again and again, with a new connection each time."""
    while not over.is_set():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(GET)
        head = await reader.readuntil(b"\r\n\r\n")
        statuses.append(int(head[9:12]))
        writer.close()


@pytest.mark.usefixtures("many_descriptors")
def test_one_address_with_thousands_of_connections_does_not_shut_others_out(farm: Callable[..., Farm]) -> None:
    running = farm("--header-timeout", "10m")
    host, port_text = running.note()["address"].rsplit(":", 1)
    port = int(port_text)
    attackers: list[socket.socket] = []

    def details() -> dict[str, int]:
        found = running.status()["director"][0]["details"]
        return {**found["errors"], "most": found["most_of_one_address"], "connections": found["connections"]}

    async def story() -> None:
        over, statuses = asyncio.Event(), list[int]()
        honest = [asyncio.create_task(browse(host, port, over, statuses)) for _ in range(HONEST)]
        for _ in range(ATTACKS):
            sock = socket.socket()
            attackers.append(sock)
            sock.setblocking(False)
            sock.bind(("127.0.0.66", 0))
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            # The beginning of a request: what is idle could be closed to make room.
            sock.send(b"GET / HTTP/1.1\r\n")
        before = len(statuses)
        while len(statuses) < before + 20 * HONEST:
            await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*honest)
        assert set(statuses) == {200}

    try:
        asyncio.run(story())
        seen = eventually(lambda: (found := details())["most"] == SHARE and found, "the end of those that were refused")
        assert seen["too_many_from_address"] == ATTACKS - SHARE
        assert seen["most"] == SHARE
        assert seen["too_many_connections"] == seen["no_server"] == 0
    finally:
        for sock in attackers:
            sock.close()
    eventually(lambda: details()["connections"] == 0, "the end of all connections")
