"""Whose turn it is to write to an SQLite file that several processes share.

SQLite itself lets everybody try again after longer and longer pauses, so the one who writes now would be the next one,
too: on a busy machine another process was locked out for seconds. The line is a lock on a file of its own, held by the
one who comes next; the pauses are of random length, so nobody in line is preferred.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
import time
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 0.25
"""In line behind other processes. Then a process goes without: whoever stands before it may be stopped."""
LINE_LOOK_S: Final = 0.003
HEAD_LOOK_S: Final = 0.0005
"""The longest pause between two looks: of those in line, and of the one that comes next."""


class SqliteLine:
    """The line at the database file ``path``, as one connection stands in it. Close it before a fork: the child would
    stand in its parent's place."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f"{path.name}-line")
        self._file: int | None = None

    def begin(self, connection: sqlite3.Connection, timeout_s: float) -> None:
        """Begin a transaction that has the write lock, within ``timeout_s`` (seconds). Whoever has had it goes to the
        end of the line before it has it again. ``connection`` itself is to wait for locks for no more than moments.

        Raises:
            sqlite3.OperationalError: the file is locked for longer, or cannot be written to.
        """
        until = time.monotonic() + timeout_s
        is_next = self._get_in(until)
        try:
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                        raise
                time.sleep(HEAD_LOOK_S * random.random())
        finally:
            if is_next and self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _get_in(self, until: float) -> bool:
        """Whether we come next. Without a file for it, or after :data:`PATIENCE_S`, everybody is for himself."""
        if self._file is None:
            with contextlib.suppress(OSError):
                self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        until = min(until, time.monotonic() + PATIENCE_S)
        while self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= until:
                break
            time.sleep(LINE_LOOK_S * random.random())
        return False
