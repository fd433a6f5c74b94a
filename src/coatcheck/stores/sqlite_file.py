"""One SQLite file of entries: schema, transactions, sweeps. Synchronous; each object is used by one thread.

**Nothing here may open the database, its journal (``-wal``) or its index (``-shm``) but SQLite itself.** POSIX drops
all locks that a process holds on a file as soon as the process closes any descriptor of that file (fcntl(2), "Advisory
record locking"). Then the next process to close the database believes itself alone and deletes the journal under the
others, and what they write afterwards is in a deleted file. SQLite knows its own descriptors and puts their closing
off; ``stat`` opens nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import CorruptEntry
from coatcheck.replication.put_rule import Verdict, bounded_life_ms, check_entry, judge
from coatcheck.sqlite_line import SqliteLine
from coatcheck.sqlite_log import use_write_ahead_log
from coatcheck.stores.fork_pause import PAUSE_PATIENCE_S, pause_at_fork

APPLICATION_ID: Final = 0x636F6174
"""Marks the file as ours ("coat"), so that we never write into another program's database."""
SCHEMA_VERSION: Final = 1
SWEEP_ROWS: Final = 5000
VACUUM_PAGES: Final = 256
READ_BUSY_TIMEOUT_S: Final = 0.005
"""A reader meets a lock only while another process mends the log after a crash. Who writes stands in line."""

# The expiry stands before the entry, so that a sweep does not read the entries' overflow pages.
# It has no index: that would cost each put a second tree to keep.
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS entries "
    "(key BLOB PRIMARY KEY NOT NULL, expires_at_ms INTEGER NOT NULL, entry BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS probes (id INTEGER PRIMARY KEY CHECK (id = 1), probed_at_ms INTEGER NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_FIND: Final = "SELECT entry, expires_at_ms FROM entries WHERE key = ?"
_STORE: Final = (
    "INSERT INTO entries (key, expires_at_ms, entry) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET expires_at_ms = excluded.expires_at_ms, entry = excluded.entry"
)
_SCAN: Final = "SELECT rowid, key FROM entries WHERE rowid > ? AND expires_at_ms > ? ORDER BY rowid LIMIT ?"


class Durability(Enum):
    """What an accepted put survives: ``FULL`` also a power cut, ``NORMAL`` only the death of processes."""

    FULL = "FULL"
    NORMAL = "NORMAL"


class Offer(msgspec.Struct, gc=False):
    """One put, encoded: see :func:`coatcheck.replication.put_rule.judge`."""

    key: bytes
    seen: bytes
    life_ms: int
    new: bytes
    notify: bytes = b""


class OfferOutcome(msgspec.Struct, gc=False):
    """What became of an offer, and what was stored before it; ``corrupt`` says why it could not be judged."""

    verdict: Verdict
    stored: bytes | None = None
    left_ms: int = 0
    corrupt: str = ""


class NotOurs(sqlite3.DatabaseError):
    """The file is a database of another program, or of a later version of this one."""


class SqliteFile:
    """A connection to the file. Every method may raise ``sqlite3.Error``; nothing is half done then.

    ``busy_timeout_s`` (seconds) is how long a call that writes may wait for other processes, and ``connect_timeout_s``,
    if it is another one, how long opening may: then others may be making the file, or taking its journal away.
    """

    def __init__(
        self, path: Path, durability: Durability, busy_timeout_s: float, connect_timeout_s: float | None = None
    ) -> None:
        with contextlib.suppress(FileExistsError, OSError):  # SQLite itself says best why it cannot open a file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self.path = path
        self._journal = path.with_name(f"{path.name}-wal")
        self._durability = durability
        self._busy_timeout_s = busy_timeout_s
        self.connect_timeout_s = busy_timeout_s if connect_timeout_s is None else connect_timeout_s
        self._lock = threading.Lock()
        self._line = SqliteLine(path)
        self._swept_to = 0
        self._closed = False
        _close_stale(path)
        self._connection: sqlite3.Connection | None = self._connect()
        try:
            self._file_seen, self._journal_seen = _identity(path), _identity(self._journal)
        except BaseException:
            self._connection.close()
            raise
        _open_files.add(self)
        pause_at_fork(self)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def find(self, key: bytes, now_ms: int) -> tuple[bytes, int] | None:
        """The stored bytes and the life left; raises :class:`CorruptEntry` if somebody else wrote them."""
        with self._turn() as connection:
            return _find(connection, key, now_ms)

    def put_all(self, offers: Sequence[Offer], clock_ms: Callable[[], int]) -> list[OfferOutcome]:
        """Judge and store all offers, in order, in one transaction that has taken the write lock first."""
        with self._turn() as connection:
            with self._writing(connection):
                now_ms = clock_ms()  # not before: the wait for the lock would lengthen what the others stored meanwhile
                outcomes = [_put(connection, offer, now_ms) for offer in offers]
            # Nobody is told of a write that is in a deleted file.
            if (moved := self._moved()) is not None:
                raise sqlite3.DatabaseError(moved)
        return outcomes

    def scan(self, cursor: int, limit: int, now_ms: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: the end) and at most ``limit`` keys, in the order of their first put."""
        with self._turn() as connection:
            rows = connection.execute(_SCAN, (cursor, now_ms, limit)).fetchall()
        return (rows[-1][0] if len(rows) == limit else 0), [row[1] for row in rows]

    def sweep(self, now_ms: int) -> int:
        """Look at the next :data:`SWEEP_ROWS` rows and delete the expired; answers how many those were."""
        with self._turn() as connection:
            rows = connection.execute(
                "SELECT rowid, expires_at_ms <= ? FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?",
                (now_ms, self._swept_to, SWEEP_ROWS),
            ).fetchall()
            self._swept_to = rows[-1][0] if len(rows) == SWEEP_ROWS else 0
            expired = [(rowid, now_ms) for rowid, is_expired in rows if is_expired]
            if expired:
                with self._writing(connection):
                    connection.executemany("DELETE FROM entries WHERE rowid = ? AND expires_at_ms <= ?", expired)
                connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        return len(expired)

    def damage(self) -> str | None:
        """What has been done to the file behind our back, if anything.

        An open connection does not notice by itself: it goes on with its cached pages, or in a removed file,
        and accepts puts that nobody else can ever read. The head of the file is read past the cache by a second
        connection, which takes no locks (``immutable``); to open the file without SQLite would cost us ours.
        """
        with self._lock:
            # Between a fork and the next call nothing is open, and whoever closes last takes the journal away.
            moved = self._moved() if self._connection is not None else None
        if moved is not None:
            return moved
        try:
            with contextlib.closing(sqlite3.connect(f"{_uri(self.path)}?mode=ro&immutable=1", uri=True)) as other:
                other.execute("PRAGMA application_id").fetchone()
        except sqlite3.Error as broken:
            # Without locks it may see half a checkpoint, which is no damage; the head stays what it is all the time.
            if broken.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                return "the file was overwritten"
        return None

    def probe(self, now_ms: int) -> None:
        """Write something: proves that the file is neither locked for long, nor corrupt, nor the disk full."""
        with self._turn() as connection, self._writing(connection):
            connection.execute("INSERT OR REPLACE INTO probes (id, probed_at_ms) VALUES (1, ?)", (now_ms,))

    def pause(self) -> bool:
        """See :class:`coatcheck.stores.fork_pause.Pausable`."""
        if not self._lock.acquire(timeout=PAUSE_PATIENCE_S):
            return False
        self._disconnect()
        return True

    def go_on(self) -> None:
        """End a pause."""
        self._lock.release()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """The connection, which no fork takes away meanwhile."""
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("the file is closed")
            if self._connection is None:
                self._connection = self._connect()
                self._journal_seen = _identity(self._journal)
            yield self._connection

    @contextlib.contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Iterator[None]:
        """The same as :func:`writing`, when it is this process's turn."""
        self._line.begin(connection, self._busy_timeout_s)
        with done_or_undone(connection):
            yield

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=self.connect_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, self._durability, self.connect_timeout_s)
            connection.execute(f"PRAGMA busy_timeout = {round(READ_BUSY_TIMEOUT_S * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        self._line.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def is_stale(self) -> bool:
        """Whether there is a connection, and it is not to the files that the names lead to."""
        return self._connection is not None and self._moved() is not None

    def _moved(self) -> str | None:
        """Why the names no longer lead to the files that the connection has open, if so."""
        try:
            if _identity(self.path) != self._file_seen:
                return "the file was replaced"
        except FileNotFoundError:
            return "the file was removed"
        try:
            if _identity(self._journal) != self._journal_seen:
                return "the file's journal was replaced"
        except FileNotFoundError:
            return "the file's journal was removed"
        return None


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file from another one of the same name; opens nothing."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _uri(path: Path) -> str:
    return path.absolute().as_uri()


@contextlib.contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that has the write lock from its first moment; rolled back on any error."""
    connection.execute("BEGIN IMMEDIATE")
    with done_or_undone(connection):
        yield


@contextlib.contextmanager
def done_or_undone(connection: sqlite3.Connection) -> Iterator[None]:
    """The rest of a transaction that has begun."""
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def _prepare(connection: sqlite3.Connection, durability: Durability, busy_timeout_s: float) -> None:
    execute = connection.execute
    # In this order: another process may be making the file, and its tables are there with its name or not at all.
    tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    application_id = execute("PRAGMA application_id").fetchone()[0]
    if tables and application_id != APPLICATION_ID:
        raise NotOurs("the file is a database of another program")
    if tables and execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
        raise NotOurs("the file was written by another version of coatcheck")
    if not tables:
        execute("PRAGMA auto_vacuum = INCREMENTAL")
    if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        use_write_ahead_log(connection, busy_timeout_s)
    execute(f"PRAGMA synchronous = {durability.value}")
    if not tables:
        with writing(connection):
            for statement in _SCHEMA:
                execute(statement)


def _find(connection: sqlite3.Connection, key: bytes, now_ms: int) -> tuple[bytes, int] | None:
    row = connection.execute(_FIND, (key,)).fetchone()
    if row is None:
        return None
    entry, expires_at_ms = row
    if not isinstance(entry, bytes) or not isinstance(expires_at_ms, int):
        raise CorruptEntry("columns of the wrong type")
    return (entry, expires_at_ms - now_ms) if expires_at_ms > now_ms else None


def _put(connection: sqlite3.Connection, offer: Offer, now_ms: int) -> OfferOutcome:
    try:
        found = _find(connection, offer.key, now_ms)
        if found is not None:
            check_entry(found[0])
    except CorruptEntry as corrupt:
        return OfferOutcome(Verdict.REFUSED, corrupt=str(corrupt))
    stored, left_ms = found or (None, 0)
    verdict = judge(stored, offer.seen, offer.new)
    if verdict is not Verdict.REFUSED:
        expires_at_ms = now_ms + bounded_life_ms(offer.life_ms)
        connection.execute(_STORE, (offer.key, expires_at_ms, offer.new))
    return OfferOutcome(verdict, stored, left_ms)


_open_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()


def _close_stale(path: Path) -> None:
    """Close this process's connections to deleted files: SQLite would let new ones share their state."""
    for file in list(_open_files):
        if file.path == path and file.is_stale() and file.pause():
            file.go_on()
