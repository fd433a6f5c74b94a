"""Real stores of items for the contract suite, and takers in processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from store_backends import (
    PASSWORD,
    PATIENCE_S,
    NetworkedBackend,
    RedisBackend,
    SessionServerBackend,
)

from coatcheck.farm.processes.forwarded_items import ForwardedItems
from coatcheck.session_server.server import SessionServer
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.stores.take_once.opening import (
    items_at,
    items_at_a_session_server,
    items_in_a_file,
    items_in_memory,
)
from coatcheck.take_once.port import TakeOnceForThreads, TakeOncePlace, TakeOnceStore
from coatcheck.take_once.rule import NEVER_STORED, NOTHING

T = TypeVar("T")


class ItemBackend:
    """What the clients of a store of items talk to."""

    kind = ""
    shared = True
    """Whether other processes reach it."""

    def __init__(self, tmp_path: Path, in_threads: bool = False) -> None:
        """``in_threads``: its clients are those of threads."""
        self.tmp_path = tmp_path
        self.in_threads = in_threads

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def place(self) -> str:
        """What a process needs to make a client: see :func:`client_of`."""
        raise NotImplementedError

    def client(self) -> TakeOnceStore:
        return client_of(self.kind, self.place(), in_threads=self.in_threads)


class MemoryItemBackend(ItemBackend):
    kind, shared = "memory", False

    def __init__(self, tmp_path: Path, in_threads: bool = False) -> None:
        super().__init__(tmp_path, in_threads)
        self._place = items_in_memory("memory")

    def client(self) -> TakeOnceStore:
        return _client(self._place, self.in_threads)


class SqliteItemBackend(ItemBackend):
    kind = "sqlite"

    def place(self) -> str:
        return str(self.tmp_path / "items.db")


class ServedItemBackend(ItemBackend):
    """A server process."""

    server_type: type[NetworkedBackend]

    def __init__(self, tmp_path: Path, in_threads: bool = False) -> None:
        super().__init__(tmp_path, in_threads)
        self.server = self.server_type(tmp_path)

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def place(self) -> str:
        return str(self.server.port)


class SessionServerItemBackend(ServedItemBackend):
    kind, server_type = "session-server", SessionServerBackend


class RedisItemBackend(ServedItemBackend):
    kind, server_type = "redis", RedisBackend


class ForwardedItemBackend(RedisItemBackend):
    """A session server that passes each call on to Redis, as for a farm's directors; in a thread of the test."""

    kind = "forwarded"

    def start(self) -> None:
        super().start()
        items = ForwardedItems([_place_of("redis", super().place(), PATIENCE_S)], limit_s=PATIENCE_S)
        self._front = SessionServer("session-server", password=PASSWORD, max_entries=1, items=items)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._front.start())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._front.stop(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
        super().stop()

    def place(self) -> str:
        return str(self._front.port)


def client_of(kind: str, place: str, timeout_s: float = PATIENCE_S, in_threads: bool = False) -> TakeOnceStore:
    return _client(_place_of(kind, place, timeout_s), in_threads)


def _place_of(kind: str, place: str, timeout_s: float) -> TakeOncePlace:
    match kind:
        case "sqlite":
            return items_in_a_file("sqlite", place, timeout_s)
        case "session-server" | "forwarded":
            address = StoreAddress(host="127.0.0.1", port=int(place), password=PASSWORD, ours=True)
            return items_at_a_session_server("session-server", address, timeout_s)
        case "redis":
            url = f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{place}?db=1"
            return items_at(SessionServerAddress("redis", url), "test", timeout_s)
    raise ValueError(kind)


def _client(place: TakeOncePlace, in_threads: bool) -> TakeOnceStore:
    return InThreads(place.for_threads()) if in_threads else place.for_a_loop()


class InThreads:
    """The threads' side of a store, asked by threads of their own, as the other side is asked."""

    def __init__(self, store: TakeOnceForThreads) -> None:
        self.name = store.name
        self.store = store
        self._threads = ThreadPoolExecutor(64)

    @property
    def reachable(self) -> bool:
        return self.store.check(1.0)

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        return await self._run(self.store.put, key, item, life_ms, after, PATIENCE_S)

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        return await self._run(self.store.take, key, nonce, PATIENCE_S)

    async def purge(self, key: bytes) -> bool:
        return await self._run(self.store.purge, key, PATIENCE_S)

    async def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes = NOTHING) -> bytes:
        return await self._run(self.store.agree, key, proposal, life_ms, PATIENCE_S, instead_of)

    async def open(self) -> None:
        """It connects when it is asked."""

    async def aclose(self) -> None:
        await self._run(self.store.close)
        self._threads.shutdown()

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


ITEM_BACKENDS: dict[str, type[ItemBackend]] = {
    "memory": MemoryItemBackend,
    "sqlite": SqliteItemBackend,
    "session-server": SessionServerItemBackend,
    "redis": RedisItemBackend,
    "forwarded": ForwardedItemBackend,
}


def start_taker(backend: ItemBackend, number: int, takers: int, items: int) -> subprocess.Popen[str]:
    """A process that says ``ready``, waits for a line, and takes each item with ``takers`` takers at once."""
    words = [backend.kind, backend.place(), str(number), str(takers), str(items), str(int(backend.in_threads))]
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def _take_all(kind: str, place: str, number: int, takers: int, items: int, in_threads: int) -> None:
    store = client_of(kind, place, in_threads=bool(in_threads))
    await store.open()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for item in range(items):
        nonces = [b"%04d%012d" % (number, taker) for taker in range(takers)]
        answers = await asyncio.gather(*[store.take(b"%032d" % item, nonce) for nonce in nonces])
        print(item, sum(answer is not None for answer in answers), sum(answer == b"item" for answer in answers))
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_take_all(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])))
