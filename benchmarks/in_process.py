"""The middleware's own CPU, without sockets: requests handed to the ASGI app, stores that answer in the next tick.

Fast paired feedback while the hot path is worked on; what counts is :mod:`benchmarks.middleware`. Usage::

    python -m benchmarks.in_process [--profile ro|rw]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import apps
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import PutReply

IN_FLIGHT = 32
REQUESTS = 3200


class TickStore(MemoryStore):
    """Accepts everything, one tick of the loop later, all replies of a tick at once, as a network link does."""

    _due: list[tuple[Callable[[PutReply], None], PutReply]]

    async def open(self) -> None:
        await super().open()
        self._due = []
        self._call_soon = asyncio.get_running_loop().call_soon

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        if not self._due:
            self._call_soon(self._answer)
        from coatcheck.stores.port import ACCEPTED

        self._due.append((reply, ACCEPTED))

    def _answer(self) -> None:
        due, self._due = self._due, []
        for reply, answer in due:
            reply(answer)


class Client:
    """One browser, without a socket."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._cookies: dict[bytes, bytes] = {}

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            for name, value in message["headers"]:
                if name.lower() == b"set-cookie":
                    cookie, _, text = value.partition(b";")[0].partition(b"=")
                    self._cookies[cookie] = text

    async def get(self, path: str) -> None:
        headers = [(b"host", b"127.0.0.1")]
        if self._cookies:
            headers.append((b"cookie", b"; ".join(b"%b=%b" % item for item in self._cookies.items())))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        await self._app(scope, self.receive, self.send)

    async def run(self, path: str, times: int) -> None:
        for _ in range(times):
            await self.get(path)


async def cpu_us(clients: list[Client], path: str) -> float:
    began = time.process_time()
    await asyncio.gather(*[client.run(path, REQUESTS // IN_FLIGHT) for client in clients])
    return (time.process_time() - began) / REQUESTS * 1e6


async def measure(rounds: int, profile: str) -> None:
    apps.open_stores = lambda: [TickStore("s1", time.monotonic), TickStore("s2", time.monotonic)]
    clients: dict[str, list[Client]] = {}
    for name in ("raw-", "raw-signed", "raw-coatcheck"):
        app = apps.make(name)
        clients[name] = [Client(app) for _ in range(IN_FLIGHT)]
        for client in clients[name]:
            await client.get("/start")
    gc.collect()
    gc.freeze()
    if profile:
        with cProfile.Profile(time.process_time) as profiler:
            await cpu_us(clients["raw-coatcheck"], f"/{profile}")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        return
    figures: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for path in ("/ro", "/rw"):
            for name, them in clients.items():
                figures.setdefault((name, path), []).append(await cpu_us(them, path))
    for path in ("/ro", "/rw"):
        bare = median(figures["raw-", path])
        low = min(figures["raw-", path])
        for name in ("raw-signed", "raw-coatcheck"):
            taken = figures[name, path]
            print(f"{path} {name:14} added us: median {median(taken) - bare:6.2f}  least {min(taken) - low:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", choices=["ro", "rw"], default="")
    options = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(measure(options.rounds, options.profile))
    else:
        uvloop.run(measure(options.rounds, options.profile))


if __name__ == "__main__":
    main()
