"""The pool's SQLite store when this process has lost its locks on the file: no token is lent twice.

POSIX drops a process's locks on a file when it closes any descriptor of it; an app's own backup is enough.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from coatcheck import sqlite_line
from coatcheck.pool import TokenPool
from coatcheck.pool.commands import CleanUp
from file_locks import is_taken

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"

PASSER_BY = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1])
    connection.execute("SELECT count(*) FROM coatcheck_pool").fetchone()
    connection.close()
"""
BORROWER = """
    import sys
    from coatcheck.pool import TokenPool
    pool = TokenPool(lambda user: "theirs", store="sqlite:///tokens.db", key=sys.argv[1], per_user=2, lease="10m")
    held = pool.lease("ann").__enter__()
    print(held.token, flush=True)
    sys.stdin.read()
"""


def run(script: str, argument: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(script), argument]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("pools", [1, 2], ids=["one pool", "two pools of one process"])
def test_no_token_is_lent_twice_after_the_locks_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tokens.db"
    ours = [
        TokenPool(lambda user: "ours", store="sqlite:///tokens.db", key=KEY, per_user=2, lease="10m")
        for _ in range(pools)
    ]
    for pool in ours:
        with pool.lease("ann") as held:
            assert held.token == "ours"
    file.read_bytes()
    assert run(PASSER_BY, str(file)).wait(60) == 0
    with run(BORROWER, KEY) as theirs:
        assert theirs.stdout is not None
        assert theirs.stdout.readline() == b"ours\n"
        for pool in ours:
            assert pool.stats()["ann"].leased == 1, "what another process did is seen"
        with ours[-1].lease("ann") as held:
            assert held.token == "ours", "a new login, since the other one is lent"
            assert ours[0].stats()["ann"].leased == 2
        assert theirs.stdin is not None
        theirs.stdin.close()
    for pool in ours:
        pool.close()


def test_who_waits_for_the_write_lock_comes_before_the_one_who_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times, for without the line it would often be so by chance. Two pools are as good as two processes."""
    monkeypatch.setattr(sqlite_line, "PATIENCE_S", 60.0)
    url = f"sqlite:///{tmp_path}/tokens.db"
    first, second = (TokenPool(lambda user: "t", store=url, key=KEY) for _ in range(2))
    first.clean_up()
    with first.lease("ann"), second.lease("bob"):
        pass
    line = os.open(tmp_path / "tokens.db-line", os.O_CREAT | os.O_RDWR)
    order: list[str] = []

    def note(pool: TokenPool, name: str) -> None:
        """Called within the transaction, so the order is that of the write lock."""
        box = pool._store._box  # type: ignore[attr-defined]
        change = box.change
        monkeypatch.setattr(box, "change", lambda *arguments: (order.append(name), change(*arguments))[1])

    note(first, "who had it")
    note(second, "who waited")
    for _ in range(10):
        with first._store._transaction():  # type: ignore[attr-defined]
            waiting = threading.Thread(target=second._store.apply, args=("ann", CleanUp()))
            waiting.start()
            until = time.monotonic() + 60
            while not is_taken(line):
                assert time.monotonic() < until
        first._store.apply("ann", CleanUp())
        waiting.join(60)
    assert order == ["who waited", "who had it"] * 10
    os.close(line)
    first.close()
    second.close()


def test_a_process_that_stops_in_line_holds_nobody_up_for_long(tmp_path: Path) -> None:
    with TokenPool(lambda user: "t", store=f"sqlite:///{tmp_path}/tokens.db", key=KEY) as pool:
        with pool.lease("ann"):
            pass
        line = os.open(tmp_path / "tokens.db-line", os.O_RDWR)
        fcntl.flock(line, fcntl.LOCK_EX)
        with pool.lease("ann") as held:
            assert held.token == "t"
        os.close(line)
