"""Processes that begin with a new SQLite file at the same time all get it, whatever they keep there."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.pool import TokenPool
from coatcheck.sqlite_log import use_write_ahead_log
from coatcheck.stores.sqlite_file import Durability, SqliteFile
from coatcheck.stores.take_once.sqlite import SqliteItemsForThreads
from coatcheck.take_once.rule import NEVER_STORED

HELD_S = 0.3


def keep_sessions(path: Path) -> None:
    SqliteFile(path, Durability.NORMAL, 5.0).close()


def keep_items(path: Path) -> None:
    assert SqliteItemsForThreads("items", path, time.time).put(b"k" * 32, b"item", 1000, NEVER_STORED, 5.0)


def keep_tokens(path: Path) -> None:
    pool = TokenPool(login=str, store=f"sqlite:///{path}", key=b"0123456789abcdef" * 2)
    with pool, pool.lease("ada") as held:
        assert held.token == "ada"


def hold_the_lock(path: Path) -> threading.Timer:
    """Another process makes the file: it has the lock of a writer, for a moment."""
    rival = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    rival.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(HELD_S, rival.close)
    timer.start()
    return timer


@pytest.mark.parametrize("keep", [keep_sessions, keep_items, keep_tokens])
def test_a_file_that_another_process_makes_in_this_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Callable[[Path], None]
) -> None:
    path, connect, holds = tmp_path / "new.db", sqlite3.connect, []

    class Late(sqlite3.Connection):
        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
            if sql == "PRAGMA journal_mode = WAL" and not holds:
                monkeypatch.setattr(sqlite3, "connect", connect)
                holds.append(hold_the_lock(path))
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, factory=Late, **named))
    keep(path)
    [timer] = holds
    timer.join()


def test_a_file_that_stays_locked_is_said_to_be_in_time(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    timer = hold_the_lock(path)
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    began = time.monotonic()
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        use_write_ahead_log(connection, HELD_S / 10)
    assert time.monotonic() - began < HELD_S
    timer.join()
    use_write_ahead_log(connection, 0.0)
    connection.close()


def test_where_there_can_be_no_such_log_it_is_said() -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError, match="allows no write-ahead log"):
        use_write_ahead_log(connection, 0.0)
    connection.close()
