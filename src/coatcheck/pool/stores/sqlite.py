"""The store in an SQLite file: shared by the processes of one machine.

Nothing here opens the file but SQLite itself: whoever closes any other descriptor of it drops all locks that this
process has (fcntl(2)), and the next process to close it deletes the journal under us. An app may do that to us, by a
backup of its own; so each command looks whether the journal is still the one that we write to. ``stat`` opens nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from coatcheck.pool.commands import Command, CommandOutcome
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import UserState
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.wakers import Wakers
from coatcheck.sqlite_line import SqliteLine
from coatcheck.sqlite_log import use_write_ahead_log

BUSY_TIMEOUT_S: Final = 10.0
"""For the write lock that another process holds, and for this process's turn at its connection."""
FORK_PATIENCE_S: Final = 1.0
POLL_FIRST_S: Final = 0.002
POLL_MAX_S: Final = 0.008
"""Between two looks whether another process has written anything, which costs microseconds."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS coatcheck_pool (
    pool TEXT NOT NULL, user TEXT NOT NULL, state BLOB NOT NULL, PRIMARY KEY (pool, user)
) WITHOUT ROWID
"""
_HAS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE name='coatcheck_pool'"
_DO_NOT_WAIT: Final = "PRAGMA busy_timeout=0"
_READ: Final = "SELECT state FROM coatcheck_pool WHERE pool=? AND user=?"
_LOOK: Final = "SELECT user, state FROM coatcheck_pool WHERE pool=?"

_stores: weakref.WeakSet[SqliteTokenStore] = weakref.WeakSet()
_stopped: list[SqliteTokenStore] = []


class SqliteTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`. ``clock``: Unix seconds, of the one machine.

    One connection and one lock per process. Between processes, SQLite's write lock is the atom, taken before reading.
    """

    def __init__(self, path: str | Path, box: StateBox, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path).absolute()  # an app may change its directory
        self._box = box
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._writable = False  # the file is there, and the table in it
        self._files: tuple[object, object] | None = None  # the file and its journal, as they were when opened
        self._line = SqliteLine(self._path)
        self.wakers = Wakers()
        self._looked: dict[tuple[str, int], int | None] = {}  # the connection's data_version when it was not its turn
        _stores.add(self)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=16,
        )

    def _create(self) -> sqlite3.Connection:
        # It holds sessions, so a new file is for its owner's eyes only; -wal and -shm inherit the mode.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = self._connection = self._connection or self._connect()
        use_write_ahead_log(connection, BUSY_TIMEOUT_S)
        # A power cut may undo the last commits, never tear one: a loss, which the port allows.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(_SCHEMA)
        connection.execute(_DO_NOT_WAIT)  # for the write lock: that is the line's business
        self._files = self._files_now()
        self._writable = True
        return connection

    def _files_now(self) -> tuple[object, object]:
        return _identity(self._path), _identity(self._path.with_name(f"{self._path.name}-wal"))

    @property
    def path(self) -> Path:
        return self._path

    def is_stale(self) -> bool:
        """Whether we have open what is no longer there by its name."""
        return self._writable and self._files != self._files_now()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The one connection, for one thread at a time. All that goes wrong is ``StoreUnavailable``."""
        if self.is_stale():
            _close_stale(self._path)
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_S):
            raise StoreUnavailable(f"SQLite file {self._path}: too many callers of this process wait for it")
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"SQLite file {self._path}: {error}") from error
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its first moment; rolled back on any error."""
        with self._turn():
            connection = self._connection if self._writable and self._connection else self._create()
            self._line.begin(connection, BUSY_TIMEOUT_S)
            try:
                yield connection
            except BaseException:
                connection.rollback()
                raise
            try:
                connection.commit()
            except BaseException:  # a full disk: the transaction is still open
                connection.rollback()
                raise
            if self.is_stale():
                raise sqlite3.OperationalError("the file or its journal was removed or replaced meanwhile")

    def apply(self, user: str, command: Command) -> CommandOutcome:
        key = (self._box.name, user)
        with self._transaction() as connection:
            row = connection.execute(_READ, key).fetchone()
            changed = self._box.change(user, None if row is None else row[0], self._clock(), command)
            if changed.sealed is not None:
                connection.execute("INSERT OR REPLACE INTO coatcheck_pool VALUES (?, ?, ?)", (*key, changed.sealed))
        self.wakers.wake(user, changed.turns)
        return changed.outcome

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        """This process wakes its own callers; of other processes SQLite tells nothing, so look, often at first."""
        self.wakers.watch(user, ticket, wake)

    def unwatch(self, user: str, ticket: int) -> None:
        self.wakers.unwatch(user, ticket)
        self._looked.pop((user, ticket), None)

    def pauses(self) -> tuple[float, float]:
        return POLL_FIRST_S, POLL_MAX_S

    def is_turn(self, user: str, ticket: int) -> bool:
        """Only what other processes write is news: this one wakes its own, and time is up when ``again_s`` is."""
        with self._turn():
            version = None
            if self._connection is not None:
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
                if self._looked.get((user, ticket)) == version:
                    return False
        found = self.look(user).get(user)
        if found is None or self._box.is_turn(found[0], found[1], ticket):
            return True
        self._looked[user, ticket] = version
        return False

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        rows, now = self._stored(self._box.name, user), self._clock()
        return self._box.shown((name, sealed, now) for name, sealed in rows)

    def _stored(self, pool: str, user: str | None = None) -> list[tuple[str, bytes]]:
        """Creates nothing: where there is no file, or no table in it, there are no users."""
        with self._turn():
            if self._connection is None and not self._path.exists():
                return []
            connection = self._connection = self._connection or self._connect()
            if not self._writable and connection.execute(_HAS_TABLE).fetchone() is None:
                return []
            connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
            try:
                if user is None:
                    return connection.execute(_LOOK, (pool,)).fetchall()
                return connection.execute(f"{_LOOK} AND user=?", (pool, user)).fetchall()
            finally:
                connection.execute(_DO_NOT_WAIT)

    def forget(self) -> None:
        for user, sealed in self._stored(self._box.name):
            if self._box.is_idle(user, sealed, self._clock()):
                with self._transaction() as connection:
                    key = (self._box.name, user)
                    row = connection.execute(_READ, key).fetchone()
                    if row is not None and self._box.is_idle(user, row[0], self._clock()):
                        connection.execute("DELETE FROM coatcheck_pool WHERE pool=? AND user=?", key)

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        rows = self._stored(self._box.shared_name, user)
        return (rows[0][1] if rows else None), self._clock()

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        key = (self._box.shared_name, user)
        with self._transaction() as connection:
            row = connection.execute(_READ, key).fetchone()
            if (None if row is None else row[0]) not in (old, new):
                return False
            if new is None:
                connection.execute("DELETE FROM coatcheck_pool WHERE pool=? AND user=?", key)
            else:
                connection.execute("INSERT OR REPLACE INTO coatcheck_pool VALUES (?, ?, ?)", (*key, new))
            return True

    def shared_users(self) -> list[str]:
        return [name for name, _ in self._stored(self._box.shared_name)]

    def close(self) -> None:
        with self._turn():
            self._disconnect()

    def stop_for_fork(self) -> None:
        """Let no thread be inside SQLite while the process forks, and nothing be open: it is opened again when needed.

        The child could never take a mutex that another thread held, and it would believe in file locks that only its
        parent has; then whoever closes the file deletes the journal that the child writes to.
        """
        if self.pause():
            _stopped.append(self)

    def pause(self) -> bool:
        """Close the connection, and let nobody in until :meth:`go_on`; ``False`` if somebody else takes too long."""
        if not self._lock.acquire(timeout=FORK_PATIENCE_S):
            return False
        with contextlib.suppress(sqlite3.Error):
            self._disconnect()
        return True

    def _disconnect(self) -> None:
        connection, self._connection, self._writable = self._connection, None, False
        self._line.close()
        self._looked.clear()  # each connection counts for itself
        if connection is not None:
            connection.close()

    def go_on(self) -> None:
        self._lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close_stale(path: Path) -> None:
    """Close this process's connections to deleted files: SQLite would let new ones share their state."""
    for store in list(_stores):
        if store.path == path and store.is_stale() and store.pause():
            store.go_on()


def _before_fork() -> None:
    for store in list(_stores):
        store.stop_for_fork()


def _after_fork() -> None:
    while _stopped:
        _stopped.pop().go_on()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


class AsyncSqliteTokenStore:
    """The same store for asyncio: the file is touched by one thread, waits sleep on the loop."""

    def __init__(self, inner: SqliteTokenStore) -> None:
        self._inner = inner
        self._thread = self._new_thread()

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def apply(self, user: str, command: Command) -> CommandOutcome:
        outcome: CommandOutcome = await self._run(self._inner.apply, user, command)
        return outcome

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self._inner.watch(user, ticket, wake)

    def unwatch(self, user: str, ticket: int) -> None:
        self._inner.unwatch(user, ticket)

    def pauses(self) -> tuple[float, float]:
        return self._inner.pauses()

    async def is_turn(self, user: str, ticket: int) -> bool:
        its_turn: bool = await self._run(self._inner.is_turn, user, ticket)
        return its_turn

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        states: dict[str, tuple[UserState, float]] = await self._run(self._inner.look, user)
        return states

    async def forget(self) -> None:
        await self._run(self._inner.forget)

    async def read_shared(self, user: str) -> tuple[bytes | None, float]:
        found: tuple[bytes | None, float] = await self._run(self._inner.read_shared, user)
        return found

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        return bool(await self._run(self._inner.swap_shared, user, old, new, keep_s))

    async def shared_users(self) -> list[str]:
        return list(await self._run(self._inner.shared_users))

    async def close(self) -> None:
        await self._run(self._inner.close)
        # Whoever gives a lease back later still can, by a thread of its own.
        closing, self._thread = self._thread, self._new_thread()
        closing.shutdown(wait=False)

    def _new_thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "coatcheck-pool-sqlite")
