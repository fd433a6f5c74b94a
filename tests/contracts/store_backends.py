"""Real stores for the contract suite: each backend starts what it needs, on loopback, and ends it by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.stores.events import StoreEvent
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import Store
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.stores.sqlite import SqliteStore
from coatcheck.stores.valkey import ValkeyStore
from ports import free_port

PASSWORD = "a password of the farm"
START_TIMEOUT_S = 30.0
PATIENCE_S = 20.0
"""How long a store may take, where time is not what a test is about: a busy machine or a slow disk is no fault."""
OWNER_A = b"AAA-0001"
OWNER_B = b"BBB-0002"


def version(epoch: int, owner: bytes = OWNER_A, seq: int = 0) -> Version:
    return Version(epoch, owner, seq)


def entry(
    v: Version, payload: bytes = b"payload", *, closed: bool = False, lapsed: bool = False, life_ms: int = 60_000
) -> Entry:
    return Entry(v, (v,), closed or lapsed, life_ms, payload, lapsed)


def same(found: object, put: Entry) -> bool:
    """Whether ``found`` is the entry that was put, its life no longer than then."""
    return (
        isinstance(found, Entry)
        and found.encode() == put.encode()
        and put.expires_in_ms - 10_000 < found.expires_in_ms <= put.expires_in_ms
    )


def new_key() -> bytes:
    return secrets.token_bytes(16)


async def ask(method: Callable[..., None], *arguments: object, within_s: float = 2 * PATIENCE_S) -> Any:
    """Call a method of a store and wait for its one reply."""
    replies: list[object] = []
    answered = asyncio.Event()

    def reply(value: object) -> None:
        replies.append(value)
        answered.set()

    method(*arguments, reply)
    async with asyncio.timeout(within_s):
        await answered.wait()
    assert len(replies) == 1, "a reply must come exactly once"
    return replies[0]


async def until(condition: Callable[[], object], within_s: float = PATIENCE_S) -> float:
    """Wait until ``condition()`` is true; answers how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "waited in vain"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


class Backend:
    """What a store's clients talk to."""

    networked = False
    shares_notices = False

    def __init__(self, tmp_path: Path, timeout_s: float = PATIENCE_S) -> None:
        self.tmp_path = tmp_path
        self.timeout_s = timeout_s
        self.events: list[StoreEvent] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def client(self) -> Store:
        raise NotImplementedError

    def corrupt(self, key: bytes, raw: bytes) -> bool:
        """Put bytes that are no entry in the place of an entry; ``False`` if nobody can do that to this backend."""
        return False


class MemoryBackend(Backend):
    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.store = MemoryStore("memory", time.monotonic, on_event=self.events.append)

    def client(self) -> Store:
        return self.store

    def corrupt(self, key: bytes, raw: bytes) -> bool:
        self.store.table._shard(key)[key].raw = raw
        return True


class SqliteBackend(Backend):
    def client(self) -> Store:
        path = self.tmp_path / "coatcheck.db"
        return SqliteStore("sqlite", path, time.time, timeout_s=self.timeout_s, on_event=self.events.append)

    def corrupt(self, key: bytes, raw: bytes) -> bool:
        with contextlib.closing(sqlite3.connect(self.tmp_path / "coatcheck.db")) as connection, connection:
            connection.execute("UPDATE entries SET entry = ? WHERE key = ?", (raw, key))
        return True


class NetworkedBackend(Backend):
    networked = True
    shares_notices = True

    def __init__(self, tmp_path: Path, timeout_s: float = PATIENCE_S) -> None:
        super().__init__(tmp_path, timeout_s)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command(), stdout=subprocess.DEVNULL, env={**os.environ, "STORE_PASSWORD": PASSWORD}
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, "the server ended at once"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(60)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)


class SessionServerBackend(NetworkedBackend):
    def command(self) -> list[str]:
        module = "coatcheck.session_server"
        listen = f"127.0.0.1:{self.port}"
        return [sys.executable, "-m", module, "--listen", listen, "--password-env", "STORE_PASSWORD"]

    def client(self) -> Store:
        options: dict[str, Any] = {"timeout_s": self.timeout_s, "on_event": self.events.append}
        return SessionServerStore("session-server", "127.0.0.1", self.port, password=PASSWORD, **options)


class RedisBackend(NetworkedBackend):
    def command(self) -> list[str]:
        server = shutil.which("valkey-server") or shutil.which("redis-server")
        assert server is not None, "redis-server is missing: apt-get install redis-server"
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        options |= {"requirepass": PASSWORD, "dir": str(self.tmp_path), "loglevel": "warning"}
        return [server, *[word for name, value in options.items() for word in (f"--{name}", value)]]

    def client(self) -> Store:
        url = f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}?db=1"
        return ValkeyStore("redis", url, farm="test", timeout_s=self.timeout_s, on_event=self.events.append)

    def raw(self, *words: bytes) -> bytes:
        """Ask the server past our own client, in the database that our client uses; answers the last reply's bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            requests = [[b"AUTH", PASSWORD.encode()], [b"SELECT", b"1"], list(words), [b"QUIT"]]
            for request in requests:
                parts = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in request)
                connection.sendall(b"*%d\r\n" % len(request) + parts)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return received.removeprefix(b"+OK\r\n+OK\r\n").removesuffix(b"+OK\r\n")

    def corrupt(self, key: bytes, raw: bytes) -> bool:
        return self.raw(b"SET", b"coatcheck:{test}:" + key, raw, b"PX", b"60000") == b"+OK\r\n"


BACKENDS: dict[str, type[Backend]] = {
    "memory": MemoryBackend,
    "sqlite": SqliteBackend,
    "session-server": SessionServerBackend,
    "redis": RedisBackend,
}
NETWORKED: dict[str, type[NetworkedBackend]] = {
    "session-server": SessionServerBackend,
    "redis": RedisBackend,
}


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run one asynchronous story to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(120):
            await story()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def opened(*stores: Store, reachable: bool = True) -> Any:
    """The stores, open and (unless told otherwise) reachable; closed afterwards."""
    for store in dict.fromkeys(stores):
        await store.open()
    try:
        if reachable:
            await until(lambda: all(store.reachable for store in stores))
        yield stores if len(stores) > 1 else stores[0]
    finally:
        for store in dict.fromkeys(stores):
            await store.aclose()
