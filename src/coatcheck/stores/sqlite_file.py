"""One SQLite file of entries: schema, transactions, sweeps. Synchronous; each object belongs to one thread."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import CorruptEntry
from coatcheck.stores.put_rule import Verdict, bounded_life_ms, check_entry, judge

APPLICATION_ID: Final = 0x636F6174
"""Marks the file as ours ("coat"), so that we never write into another program's database."""
SCHEMA_VERSION: Final = 1
SWEEP_ROWS: Final = 5000
VACUUM_PAGES: Final = 256

# The expiry stands before the entry, so that a sweep does not read the entries' overflow pages.
# It has no index: that would cost each put a second tree to keep.
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS entries "
    "(key BLOB PRIMARY KEY NOT NULL, expires_at_ms INTEGER NOT NULL, entry BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS probes (id INTEGER PRIMARY KEY CHECK (id = 1), probed_at_ms INTEGER NOT NULL)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_MAGIC: Final = b"SQLite format 3\0"
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
    """One put, encoded: see :func:`coatcheck.stores.put_rule.judge`."""

    key: bytes
    seen: bytes
    life_ms: int
    new: bytes


class Outcome(msgspec.Struct, gc=False):
    """What became of an offer, and what was stored before it; ``corrupt`` says why it could not be judged."""

    verdict: Verdict
    stored: bytes | None = None
    left_ms: int = 0
    corrupt: str = ""


class NotOurs(sqlite3.DatabaseError):
    """The file is a database of another program, or of a later version of this one."""


class SqliteFile:
    """A connection to the file. Every method may raise ``sqlite3.Error``; nothing is half done then."""

    def __init__(self, path: Path, durability: Durability, busy_timeout_s: float) -> None:
        with contextlib.suppress(FileExistsError, OSError):  # SQLite itself says best why it cannot open a file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._path = path
        self._connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
        self._swept_to = 0
        try:
            self._prepare(durability)
            self._inode = path.stat().st_ino
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def find(self, key: bytes, now_ms: int) -> tuple[bytes, int] | None:
        """The stored bytes and the life left; raises :class:`CorruptEntry` if somebody else wrote them."""
        row = self._connection.execute(_FIND, (key,)).fetchone()
        if row is None:
            return None
        entry, expires_at_ms = row
        if not isinstance(entry, bytes) or not isinstance(expires_at_ms, int):
            raise CorruptEntry("columns of the wrong type")
        return (entry, expires_at_ms - now_ms) if expires_at_ms > now_ms else None

    def put_all(self, offers: Sequence[Offer], clock_ms: Callable[[], int]) -> list[Outcome]:
        """Judge and store all offers, in order, in one transaction that has taken the write lock first."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            now_ms = clock_ms()  # not before: the wait for the lock would lengthen what the others stored meanwhile
            outcomes = [self._put(offer, now_ms) for offer in offers]
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return outcomes

    def scan(self, cursor: int, limit: int, now_ms: int) -> tuple[int, list[bytes]]:
        """The next cursor (0: the end) and at most ``limit`` keys, in the order of their first put."""
        rows = self._connection.execute(_SCAN, (cursor, now_ms, limit)).fetchall()
        return (rows[-1][0] if len(rows) == limit else 0), [row[1] for row in rows]

    def sweep(self, now_ms: int) -> int:
        """Look at the next :data:`SWEEP_ROWS` rows and delete the expired; answers how many those were."""
        rows = self._connection.execute(
            "SELECT rowid, expires_at_ms <= ? FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (now_ms, self._swept_to, SWEEP_ROWS),
        ).fetchall()
        self._swept_to = rows[-1][0] if len(rows) == SWEEP_ROWS else 0
        expired = [(rowid, now_ms) for rowid, is_expired in rows if is_expired]
        if expired:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany("DELETE FROM entries WHERE rowid = ? AND expires_at_ms <= ?", expired)
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
            self._connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        return len(expired)

    def damage(self) -> str | None:
        """What has been done to the file behind our back, if anything.

        An open connection does not notice by itself: it goes on with its cached pages, or in a removed file,
        and accepts puts that nobody else can ever read.
        """
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino != self._inode:
                    return "the file was replaced"
                if file.read(len(_MAGIC)) != _MAGIC:
                    return "the file was overwritten"
        except FileNotFoundError:
            return "the file was removed"
        return None

    def probe(self, now_ms: int) -> None:
        """Write something: proves that the file is neither locked for long, nor corrupt, nor the disk full."""
        self._connection.execute("INSERT OR REPLACE INTO probes (id, probed_at_ms) VALUES (1, ?)", (now_ms,))

    def _prepare(self, durability: Durability) -> None:
        execute = self._connection.execute
        application_id = execute("PRAGMA application_id").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application_id != APPLICATION_ID:
            raise NotOurs("the file is a database of another program")
        if tables and execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            raise NotOurs("the file was written by another version of coatcheck")
        if not tables:
            execute("PRAGMA auto_vacuum = INCREMENTAL")
        if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            mode = execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise sqlite3.OperationalError(f"the file system allows no write-ahead log (mode {mode})")
        execute(f"PRAGMA synchronous = {durability.value}")
        if not tables:
            execute("BEGIN IMMEDIATE")
            try:
                for statement in _SCHEMA:
                    execute(statement)
                execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _put(self, offer: Offer, now_ms: int) -> Outcome:
        try:
            found = self.find(offer.key, now_ms)
            if found is not None:
                check_entry(found[0])
        except CorruptEntry as corrupt:
            return Outcome(Verdict.REFUSED, corrupt=str(corrupt))
        stored, left_ms = found or (None, 0)
        verdict = judge(stored, offer.seen, offer.new)
        if verdict is not Verdict.REFUSED:
            expires_at_ms = now_ms + bounded_life_ms(offer.life_ms)
            self._connection.execute(_STORE, (offer.key, expires_at_ms, offer.new))
        return Outcome(verdict, stored, left_ms)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
