"""The pool's SQLite store when this process has lost its locks on the file: no token is lent twice.

POSIX drops a process's locks on a file when it closes any descriptor of it; an app's own backup is enough.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from coatcheck.pool import TokenPool

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
