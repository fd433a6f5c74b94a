"""The store in an SQLite file: shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from coatcheck.pool.commands import Command, Outcome
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import UserState
from coatcheck.pool.stores.blob import StateBox

BUSY_TIMEOUT_S: Final = 10.0
POLL_FIRST_S: Final = 0.002
POLL_MAX_S: Final = 0.05

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS coatcheck_pool (
    pool TEXT NOT NULL, user TEXT NOT NULL, state BLOB NOT NULL, PRIMARY KEY (pool, user)
) WITHOUT ROWID
"""


class SqliteStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`. ``clock``: Unix seconds, of the one machine.

    One connection and one lock per process; a fork opens its own. Between processes, SQLite's write lock is the
    atom, taken before reading.
    """

    def __init__(self, path: str | Path, box: StateBox, clock: Callable[[], float] = time.time) -> None:
        self._path = str(path)
        self._box = box
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._changed = threading.Condition()

    def _open(self) -> sqlite3.Connection:
        # It holds sessions, so a new file is for its owner's eyes only; -wal and -shm inherit the mode.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            # A power cut may undo the last commits, never tear one: a loss, which the port allows.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its first moment; rolled back on any error."""
        with self._lock:
            try:
                if self._connection is None or self._pid != os.getpid():
                    self._connection, self._pid = self._open(), os.getpid()
                connection = self._connection
                connection.execute(begin)
                try:
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            except (sqlite3.Error, OSError) as error:
                raise StoreUnavailable(f"SQLite file {self._path}: {error}") from error

    def apply(self, user: str, command: Command) -> Outcome:
        key = (self._box.name, user)
        with self._transaction() as connection:
            row = connection.execute("SELECT state FROM coatcheck_pool WHERE pool=? AND user=?", key).fetchone()
            changed = self._box.change(user, None if row is None else row[0], self._clock(), command)
            if changed.sealed is not None:
                connection.execute("INSERT OR REPLACE INTO coatcheck_pool VALUES (?, ?, ?)", (*key, changed.sealed))
        if changed.turns:
            with self._changed:
                self._changed.notify_all()
        return changed.outcome

    def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        """SQLite tells nobody; so look at the state, at first often, then 20 times a second."""
        until = time.monotonic() + timeout_s
        pause_s = POLL_FIRST_S
        while (left_s := until - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait(min(left_s, pause_s * (0.5 + random.random())))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
            found = self.look(user).get(user)
            if found is None or self._box.is_turn(found[0], found[1], ticket):
                return

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        query: tuple[str, tuple[Any, ...]] = (
            ("SELECT user, state FROM coatcheck_pool WHERE pool=?", (self._box.name,))
            if user is None
            else ("SELECT user, state FROM coatcheck_pool WHERE pool=? AND user=?", (self._box.name, user))
        )
        with self._transaction("BEGIN") as connection:
            rows = connection.execute(*query).fetchall()
        now = self._clock()
        return {name: (self._box.open(name, sealed), now) for name, sealed in rows}

    def forget(self) -> None:
        for user, (state, _) in self.look().items():
            if state.is_idle(self._clock()):
                with self._transaction() as connection:
                    key = (self._box.name, user)
                    row = connection.execute("SELECT state FROM coatcheck_pool WHERE pool=? AND user=?", key).fetchone()
                    if row is not None and self._box.open(user, row[0]).is_idle(self._clock()):
                        connection.execute("DELETE FROM coatcheck_pool WHERE pool=? AND user=?", key)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None


class AsyncSqliteStore:
    """The same store for asyncio: the file is touched by one thread, waits sleep on the loop."""

    def __init__(self, inner: SqliteStore, box: StateBox) -> None:
        self._inner = inner
        self._box = box
        self._thread = ThreadPoolExecutor(1, "coatcheck-pool-sqlite")

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def apply(self, user: str, command: Command) -> Outcome:
        outcome: Outcome = await self._run(self._inner.apply, user, command)
        return outcome

    async def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        pause_s = POLL_FIRST_S
        while (left_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, pause_s * (0.5 + random.random())))
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
            found = (await self.look(user)).get(user)
            if found is None or self._box.is_turn(found[0], found[1], ticket):
                return

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        states: dict[str, tuple[UserState, float]] = await self._run(self._inner.look, user)
        return states

    async def forget(self) -> None:
        await self._run(self._inner.forget)

    async def close(self) -> None:
        await self._run(self._inner.close)
        self._thread.shutdown(wait=False)
