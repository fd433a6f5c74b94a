"""Real token stores for the contract suite: each backend starts what it needs, on loopback, and ends it by its pid."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import pwd
import secrets
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psycopg
import redis

from coatcheck.pool.commands import Command, CommandOutcome
from coatcheck.pool.state import Policy, UserState
from coatcheck.pool.stores.address import open_async_store, open_store
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.header import sealed_of
from coatcheck.pool.stores.memory import AsyncMemoryTokenStore, MemoryTokenStore
from coatcheck.pool.stores.port import AsyncTokenStore, TokenStore
from coatcheck.tokens.keyring import KeyRing
from ports import free_port

START_TIMEOUT_S = 30.0
KEY = secrets.token_bytes(32)


class Looped:
    """An asyncio store behind the calls of a store for threads, so that both take the same suite."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.store: AsyncTokenStore

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def apply(self, user: str, command: Command) -> CommandOutcome:
        outcome: CommandOutcome = self._run(self.store.apply(user, command))
        return outcome

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        async def watch() -> None:
            self.store.watch(user, ticket, wake)

        self._run(watch())

    def unwatch(self, user: str, ticket: int) -> None:
        self.store.unwatch(user, ticket)

    def pauses(self) -> tuple[float, float]:
        return self.store.pauses()

    def is_turn(self, user: str, ticket: int) -> bool:
        its_turn: bool = self._run(self.store.is_turn(user, ticket))
        return its_turn

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        states: dict[str, tuple[UserState, float]] = self._run(self.store.look(user))
        return states

    def forget(self) -> None:
        self._run(self.store.forget())

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        found: tuple[bytes | None, float] = self._run(self.store.read_shared(user))
        return found

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        return bool(self._run(self.store.swap_shared(user, old, new, keep_s)))

    def shared_users(self) -> list[str]:
        return list(self._run(self.store.shared_users()))

    def close(self) -> None:
        self._run(self.store.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.loop.close()


def looped(make: Any) -> Looped:
    """``make()`` runs on the loop: some clients bind to it."""
    shell = Looped()

    async def begin() -> None:
        shell.store = make()

    shell._run(begin())
    return shell


def wait(store: TokenStore, user: str, ticket: int, timeout_s: float) -> None:
    """Return when it may be the turn of ``ticket``, or after ``timeout_s``: as the first of a line waits."""
    woken, until = threading.Event(), time.monotonic() + timeout_s
    store.watch(user, ticket, woken.set)
    try:
        pause_s = store.pauses()[0]
        while (left_s := until - time.monotonic()) > 0:
            if woken.wait(min(left_s, pause_s, threading.TIMEOUT_MAX)) or store.is_turn(user, ticket):
                return
            pause_s = min(pause_s * 1.5, store.pauses()[1])
    finally:
        store.unwatch(user, ticket)


class TokenBackend:
    """What token stores keep their states in."""

    shared = True  # by processes
    url = ""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def box(self, policy: Policy, name: str, key: bytes = KEY) -> StateBox:
        return StateBox(KeyRing([key]), name, policy)

    def client(self, policy: Policy, name: str, *, awaited: bool, key: bytes = KEY) -> TokenStore:
        """Another client of the same states; ``awaited``: the one for asyncio."""
        box = self.box(policy, name, key)
        return looped(lambda: open_async_store(self.url, box)) if awaited else open_store(self.url, box)

    def raw(self) -> bytes:
        """Everything that is stored, as a thief would find it."""
        raise NotImplementedError

    def overwrite(self, user: str, raw: bytes) -> None:
        """Put bytes in the place of every state of ``user``."""
        raise NotImplementedError

    def put_back(self, name: str, user: str, state: UserState) -> None:
        """Put a state in the place of what the pool ``name`` keeps of a user whom no other pool has."""
        self.overwrite(user, self.sealed(self.box(Policy(), name), user, state))

    def sealed(self, box: StateBox, user: str, state: UserState) -> bytes:
        """A state as it is stored whole; for Redis, as the release before stored it."""
        return box.seal(user, state)

    def lose(self) -> None:
        """The store loses everything."""
        raise NotImplementedError


class MemoryBackend(TokenBackend):
    shared = False

    def __init__(self) -> None:
        self.stores: dict[str, MemoryTokenStore] = {}

    def client(self, policy: Policy, name: str, *, awaited: bool, key: bytes = KEY) -> TokenStore:
        store = self.stores.setdefault(name, MemoryTokenStore(policy))
        return looped(lambda: AsyncMemoryTokenStore(store)) if awaited else store

    def put_back(self, name: str, user: str, state: UserState) -> None:
        self.stores[name].states[user] = state

    def lose(self) -> None:
        for store in self.stores.values():
            store.states.clear()


class SqliteBackend(TokenBackend):
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="coatcheck-"))
        self.file = self.folder / "tokens.db"
        self.url = f"sqlite:///{self.file}"

    def stop(self) -> None:
        shutil.rmtree(self.folder)

    def raw(self) -> bytes:
        # By another process: if this one closed the file, it would lose its locks on it.
        return subprocess.run(["cat", *map(str, self.folder.iterdir())], check=True, stdout=subprocess.PIPE).stdout

    def _execute(self, query: str, arguments: tuple[Any, ...] = ()) -> None:
        with contextlib.closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute(query, arguments)

    def overwrite(self, user: str, raw: bytes) -> None:
        self._execute("UPDATE coatcheck_pool SET state=? WHERE user=?", (raw, user))

    def lose(self) -> None:
        self._execute("DELETE FROM coatcheck_pool")


class RedisBackend(TokenBackend):
    def start(self) -> None:
        server = shutil.which("valkey-server") or shutil.which("redis-server")
        assert server is not None, "redis-server is missing: apt-get install redis-server"
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="coatcheck-"))
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(self.folder)}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([server, *words], stdout=subprocess.DEVNULL)
        self.url = f"redis://127.0.0.1:{self.port}/1"
        wait_for_port(self.port, self.process)
        self.redis = redis.Redis.from_url(self.url)

    def stop(self) -> None:
        self.redis.close()
        self.process.kill()
        self.process.wait(60)
        shutil.rmtree(self.folder)

    def sealed(self, box: StateBox, user: str, state: UserState) -> bytes:
        return sealed_of(box.seal(user, state))

    def raw(self) -> bytes:
        return b"".join(self.redis.dump(key) or b"" for key in self.redis.scan_iter())

    def overwrite(self, user: str, raw: bytes) -> None:
        for key in self.redis.scan_iter("*:state"):
            if self.redis.hget(key, "u") == user.encode():
                self.redis.hset(key, mapping={"v": secrets.token_bytes(8), "s": raw})

    def lose(self) -> None:
        self.redis.flushall()


class PostgresqlServer:
    """A cluster of its own, by an unprivileged user: PostgreSQL refuses root."""

    def __init__(self) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").is_dir() else []
        path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, reversed(binaries))])
        initdb, postgres = shutil.which("initdb", path=path), shutil.which("postgres", path=path)
        assert initdb and postgres, "PostgreSQL is missing: apt-get install postgresql"
        owner = pwd.getpwuid(os.getuid() or pwd.getpwnam("nobody").pw_uid)
        self.folder = Path(tempfile.mkdtemp(prefix="coatcheck-"))
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        identity: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid} if os.getuid() == 0 else {}
        cluster = self.folder / "cluster"
        made = [initdb, "-D", str(cluster), "-U", "coatcheck", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=120, **identity)
        self.port = free_port()
        settings = {"port": str(self.port), "listen_addresses": "127.0.0.1", "fsync": "off", "shared_buffers": "32MB"}
        settings |= {"unix_socket_directories": str(self.folder), "logging_collector": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [postgres, "-D", str(cluster), *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **identity
        )
        self.url = f"postgresql://coatcheck@127.0.0.1:{self.port}/postgres"
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=30).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, "PostgreSQL ended at once"
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()  # a "smart" shutdown would wait for clients; they are gone or idle
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(3)  # SIGQUIT: at once
            self.process.wait(60)
        shutil.rmtree(self.folder)


@functools.cache
def postgresql_server() -> PostgresqlServer:
    """One for all tests of a process: it takes a second to make."""
    server, owner = PostgresqlServer(), os.getpid()
    atexit.register(lambda: server.stop() if os.getpid() == owner else None)
    return server


class PostgresqlBackend(TokenBackend):
    """A database of its own."""

    def start(self) -> None:
        server = postgresql_server()
        self.process = server.process
        self.name = f"test_{secrets.token_hex(6)}"
        self._server_url = server.url
        self.url = server.url.removesuffix("postgres") + self.name
        self._manage(f"CREATE DATABASE {self.name}")

    def stop(self) -> None:
        self._manage(f"DROP DATABASE {self.name} WITH (FORCE)")

    def _manage(self, query: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(query.encode())

    def _execute(self, query: str, arguments: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(query, arguments)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def raw(self) -> bytes:
        rows = self._execute("SELECT pool, username, state FROM coatcheck_pool")
        return b"".join(pool.encode() + user.encode() + bytes(state or b"") for pool, user, state in rows)

    def overwrite(self, user: str, raw: bytes) -> None:
        self._execute("UPDATE coatcheck_pool SET state=%s WHERE username=%s", (raw, user))

    def lose(self) -> None:
        self._execute("DELETE FROM coatcheck_pool")


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server ended at once"
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.01)


TOKEN_BACKENDS: dict[str, type[TokenBackend]] = {
    "memory": MemoryBackend,
    "sqlite": SqliteBackend,
    "redis": RedisBackend,
    "postgresql": PostgresqlBackend,
}
