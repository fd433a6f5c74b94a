"""Real stores of items for the contract suite, and takers in processes of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from store_backends import (
    PASSWORD,
    PATIENCE_S,
    NetworkedBackend,
    RedisBackend,
    SessionServerBackend,
)

from coatcheck.stores.address import StoreAddress, parse_url
from coatcheck.stores.take_once.memory import MemoryItems
from coatcheck.stores.take_once.session_server import SessionServerItems
from coatcheck.stores.take_once.sqlite import SqliteItems
from coatcheck.stores.take_once.valkey import ValkeyItems
from coatcheck.take_once.port import TakeOnceStore


class ItemBackend:
    """What the clients of a store of items talk to."""

    kind = ""
    shared = True
    """Whether other processes reach it."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def place(self) -> str:
        """What a process needs to make a client: see :func:`client_of`."""
        raise NotImplementedError

    def client(self) -> TakeOnceStore:
        return client_of(self.kind, self.place())


class MemoryItemBackend(ItemBackend):
    kind, shared = "memory", False

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.store = MemoryItems("memory", time.monotonic)

    def client(self) -> TakeOnceStore:
        return self.store


class SqliteItemBackend(ItemBackend):
    kind = "sqlite"

    def place(self) -> str:
        return str(self.tmp_path / "items.db")


class ServedItemBackend(ItemBackend):
    """A server process."""

    server_type: type[NetworkedBackend]

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
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


def client_of(kind: str, place: str, timeout_s: float = PATIENCE_S) -> TakeOnceStore:
    match kind:
        case "sqlite":
            return SqliteItems("sqlite", place, time.time, timeout_s=timeout_s)
        case "session-server":
            address = StoreAddress(host="127.0.0.1", port=int(place), password=PASSWORD, ours=True)
            return SessionServerItems("session-server", address, timeout_s=timeout_s)
        case "redis":
            url = f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{place}?db=1"
            return ValkeyItems("redis", parse_url(url), farm="test", timeout_s=timeout_s)
    raise ValueError(kind)


ITEM_BACKENDS: dict[str, type[ItemBackend]] = {
    "memory": MemoryItemBackend,
    "sqlite": SqliteItemBackend,
    "session-server": SessionServerItemBackend,
    "redis": RedisItemBackend,
}


def start_taker(backend: ItemBackend, number: int, takers: int, items: int) -> subprocess.Popen[str]:
    """A process that says ``ready``, waits for a line, and takes each item with ``takers`` takers at once."""
    words = [backend.kind, backend.place(), str(number), str(takers), str(items)]
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def _take_all(kind: str, place: str, number: int, takers: int, items: int) -> None:
    store = client_of(kind, place)
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
