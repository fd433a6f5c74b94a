"""Items in an SQLite file: for the processes of one machine.

**A power cut forgets.** A take is acknowledged when SQLite has written it, not when it is on the disk; so the death of
a process loses nothing, and a power cut may lose the last takes. Then what was taken could be taken again, so the file
names the boot of the machine that wrote it, and all items of another boot are dropped where it is opened. Where the
kernel does not name its boots, each take waits for the disk.

Only SQLite may open the file: see :mod:`coatcheck.stores.sqlite_file`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from coatcheck.sqlite_line import SqliteLine
from coatcheck.sqlite_log import use_write_ahead_log
from coatcheck.stores.fork_pause import PAUSE_PATIENCE_S, pause_at_fork
from coatcheck.stores.sqlite_file import done_or_undone, writing
from coatcheck.take_once.port import TakeOnceFull, TakeOnceUnavailable
from coatcheck.take_once.rule import (
    NEVER_STORED,
    NOTHING,
    ItemRow,
    Taking,
    check_agreement,
    check_key,
    check_nonce,
    check_put,
    decides,
    judge_take,
    may_put,
    purged,
    taken,
)
from coatcheck.take_once.table import MAX_AGREEMENTS

T = TypeVar("T")

APPLICATION_ID: Final = 0x636F6169
"""Marks the file as one of ours with items ("coai"), so that we never write into another program's database."""
SCHEMA_VERSION: Final = 1
BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
DEFAULT_TIMEOUT_S: Final = 0.3
MAX_WAITING: Final = 1024
"""Calls that wait for their turn at the file; one more is answered as unavailable."""
RETRY_S: Final = 1.0
"""So long a file that could not be used counts as out of reach."""
MAX_ITEMS: Final = 1_000_000
SWEEP_ROWS: Final = 8
"""So many rows are looked at with each put."""

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS items (key BLOB PRIMARY KEY NOT NULL, expires_at_ms INTEGER NOT NULL, "
    "kept_until_ms INTEGER NOT NULL, taker BLOB NOT NULL, item BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS agreements (key BLOB PRIMARY KEY NOT NULL, expires_at_ms INTEGER NOT NULL, "
    "value BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS boot (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_FIND: Final = "SELECT item, expires_at_ms, taker, kept_until_ms FROM items WHERE key = ? AND expires_at_ms > ?"
_STORE: Final = (
    "INSERT INTO items (item, expires_at_ms, taker, kept_until_ms, key) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET item = excluded.item, expires_at_ms = excluded.expires_at_ms, "
    "taker = excluded.taker, kept_until_ms = excluded.kept_until_ms"
)


def boot_name(path: Path = BOOT) -> str:
    """What this boot of the machine is called by its kernel; empty if it has no name for it."""
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""


class SqliteItemsForThreads:
    """See :class:`coatcheck.take_once.port.TakeOnceForThreads`. ``clock`` answers Unix seconds, alike in all processes.

    The threads of a process take turns at its one connection. A call waits for them, and then in line with other
    processes, within its limit.
    """

    def __init__(
        self, name: str, path: str | Path, clock: Callable[[], float], *, boot: Callable[[], str] = boot_name
    ) -> None:
        self.name = name
        self._path = Path(path)
        self._clock = clock
        self._boot = boot
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._line = SqliteLine(self._path)
        self._refused = 0
        self._swept_to = 0
        pause_at_fork(self)

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        check_put(key, item, life_ms, after)
        return self._run(partial(self._put, key, item, life_ms, after), limit_s)

    def hand_over(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> None:
        """There is nobody to hand it over to: it is stored when this returns."""
        if not self.put(key, item, life_ms, after, limit_s):
            self._refused += 1

    def take(self, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        return self._run(partial(self._take, key, nonce), limit_s)

    def purge(self, key: bytes, limit_s: float) -> bool:
        check_key(key)
        return self._run(partial(self._purge, key), limit_s)

    def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float, instead_of: bytes = NOTHING) -> bytes:
        check_agreement(key, proposal, life_ms)
        return self._run(partial(self._agree, key, proposal, life_ms, instead_of), limit_s)

    def check(self, limit_s: float) -> bool:
        with contextlib.suppress(TakeOnceUnavailable):
            self._run(lambda connection: None, limit_s)
            return True
        return False

    def settle(self) -> tuple[int, int]:
        return 0, self._refused

    def close(self) -> None:
        with self._turn:
            self._disconnect()

    def pause(self) -> bool:
        """See :class:`coatcheck.stores.fork_pause.Pausable`."""
        if not self._turn.acquire(timeout=PAUSE_PATIENCE_S):
            return False
        self._disconnect()
        return True

    def go_on(self) -> None:
        """End a pause."""
        self._turn.release()

    def _run(self, work: Callable[[sqlite3.Connection], T], limit_s: float) -> T:
        until = time.monotonic() + limit_s
        if not self._turn.acquire(timeout=limit_s):
            raise TakeOnceUnavailable(f"{self.name}: too many calls wait")
        try:
            if self._connection is None:
                self._connection = self._connect(max(until - time.monotonic(), 0.0))
            connection = self._connection
            self._line.begin(connection, until - time.monotonic())
            with done_or_undone(connection):
                return work(connection)
        except (sqlite3.Error, OSError) as broken:
            if not _is_lock(broken):
                self._disconnect()
            raise TakeOnceUnavailable(f"{self.name}: {broken}") from None
        finally:
            self._turn.release()

    def _disconnect(self) -> None:
        self._line.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self, limit_s: float) -> sqlite3.Connection:
        with contextlib.suppress(FileExistsError, OSError):  # SQLite itself says best why it cannot open a file
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=limit_s, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            self._prepare(connection, limit_s)
            connection.execute("PRAGMA busy_timeout = 0")  # who writes stands in line instead
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, limit_s: float) -> None:
        execute = connection.execute
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        written_by = (execute("PRAGMA application_id").fetchone()[0], execute("PRAGMA user_version").fetchone()[0])
        if tables and written_by != (APPLICATION_ID, SCHEMA_VERSION):
            raise sqlite3.DatabaseError("the file is no store of items, or of another version of coatcheck")
        use_write_ahead_log(connection, limit_s)
        boot = self._boot()
        execute(f"PRAGMA synchronous = {'NORMAL' if boot else 'FULL'}")
        with writing(connection):
            if not tables:
                for statement in _SCHEMA:
                    execute(statement)
            before = execute("SELECT name FROM boot").fetchone()
            if before is None or before[0] != boot:
                if boot:
                    execute("DELETE FROM items")
                execute("INSERT OR REPLACE INTO boot (id, name) VALUES (1, ?)", (boot,))

    def _put(self, key: bytes, item: bytes, life_ms: int, after: bytes, connection: sqlite3.Connection) -> bool:
        now_ms = self._now_ms()
        self._sweep(connection, now_ms)
        if not may_put(_find(connection, key, now_ms), after):
            return False
        rows = connection.execute("SELECT max(rowid) - min(rowid) FROM items").fetchone()[0] or 0
        if rows >= MAX_ITEMS:
            raise TakeOnceFull(f"{self.name}: no room: about {rows} items are stored")
        _store(connection, key, ItemRow(item, now_ms + life_ms))
        return True

    def _take(self, key: bytes, nonce: bytes, connection: sqlite3.Connection) -> bytes | None:
        now_ms = self._now_ms()
        stored = _find(connection, key, now_ms)
        taking = judge_take(stored, nonce, now_ms)
        if stored is None or taking is Taking.REFUSED:
            return None
        if taking is Taking.TAKES:
            _store(connection, key, taken(stored, nonce, now_ms))
        return stored.item

    def _purge(self, key: bytes, connection: sqlite3.Connection) -> bool:
        stored = _find(connection, key, self._now_ms())
        if stored is None:
            return False
        _store(connection, key, purged(stored))
        return True

    def _agree(
        self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes, connection: sqlite3.Connection
    ) -> bytes:
        now_ms = self._now_ms()
        connection.execute("DELETE FROM agreements WHERE expires_at_ms <= ?", (now_ms,))
        count = connection.execute("SELECT count(*) FROM agreements").fetchone()[0]
        found = connection.execute("SELECT value FROM agreements WHERE key = ?", (key,)).fetchone()
        if found is not None and not decides(bytes(found[0]), instead_of):
            return bytes(found[0])
        if found is None and count >= MAX_AGREEMENTS:
            raise TakeOnceFull(f"{self.name}: no room: {count} agreements")
        connection.execute("INSERT OR REPLACE INTO agreements VALUES (?, ?, ?)", (key, now_ms + life_ms, proposal))
        return proposal

    def _sweep(self, connection: sqlite3.Connection, now_ms: int) -> None:
        """Of the next few rows drop what has expired, and contents whose taker had them long enough."""
        rows = connection.execute(
            "SELECT rowid, expires_at_ms, kept_until_ms, taker FROM items WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (self._swept_to, SWEEP_ROWS),
        ).fetchall()
        self._swept_to = rows[-1][0] if len(rows) == SWEEP_ROWS else 0
        for rowid, expires_at_ms, kept_until_ms, taker in rows:
            if expires_at_ms <= now_ms:
                connection.execute("DELETE FROM items WHERE rowid = ?", (rowid,))
            elif taker and kept_until_ms <= now_ms:
                connection.execute("UPDATE items SET item = x'' WHERE rowid = ? AND item != x''", (rowid,))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class SqliteItems:
    """The same for an event loop, on a thread of its own: see :class:`coatcheck.take_once.port.TakeOnceStore`."""

    def __init__(self, items: SqliteItemsForThreads, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.name = items.name
        self._items = items
        self._timeout_s = timeout_s
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._failed_at = -RETRY_S

    @property
    def reachable(self) -> bool:
        """Unless it could not be used a moment ago; after that only another call can tell."""
        return time.monotonic() - self._failed_at >= RETRY_S

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        check_put(key, item, life_ms, after)
        return await self._run(partial(self._items.put, key, item, life_ms, after, self._timeout_s))

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        return await self._run(partial(self._items.take, key, nonce, self._timeout_s))

    async def purge(self, key: bytes) -> bool:
        check_key(key)
        return await self._run(partial(self._items.purge, key, self._timeout_s))

    async def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes = NOTHING) -> bytes:
        check_agreement(key, proposal, life_ms)
        return await self._run(partial(self._items.agree, key, proposal, life_ms, self._timeout_s, instead_of))

    async def open(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coatcheck-items")
        if not await self._run(partial(self._items.check, self._timeout_s)):
            self._failed_at = time.monotonic()

    async def aclose(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._items.close)
            thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None or self._waiting >= MAX_WAITING:
            raise TakeOnceUnavailable(
                f"{self.name}: " + ("not open" if self._thread is None else "too many calls wait")
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TakeOnceFull:
            raise
        except TakeOnceUnavailable:
            self._failed_at = time.monotonic()
            raise
        finally:
            self._waiting -= 1


def _is_lock(broken: Exception) -> bool:
    """Whether another process only held the file for too long."""
    return getattr(broken, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _find(connection: sqlite3.Connection, key: bytes, now_ms: int) -> ItemRow | None:
    row = connection.execute(_FIND, (key, now_ms)).fetchone()
    return ItemRow(*row) if row is not None else None


def _store(connection: sqlite3.Connection, key: bytes, row: ItemRow) -> None:
    connection.execute(_STORE, (row.item, row.expires_at_ms, row.taker, row.kept_until_ms, key))
