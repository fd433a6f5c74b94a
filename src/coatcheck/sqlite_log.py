"""SQLite's write-ahead log, switched on while other processes may be doing the same."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

RETRY_S: Final = 0.005


def use_write_ahead_log(connection: sqlite3.Connection, limit_s: float) -> None:
    """Switch it on, for all who open the file; waits for other processes' locks, at most ``limit_s`` (seconds).

    For this one statement SQLite does not wait, whatever the time-out of the connection: of several processes that
    begin with a new file at once, one would be told that it is locked.

    Raises:
        sqlite3.OperationalError: the file is locked for longer, or lies where there can be no such log.
    """
    until = time.monotonic() + limit_s
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as broken:
            if broken.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(RETRY_S)
        else:
            if mode != "wal":
                raise sqlite3.OperationalError(f"the file system allows no write-ahead log (mode {mode})")
            return
