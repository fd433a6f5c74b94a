"""D9: "The pool may live in a database, shared by processes and machines." """

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.pool import NULL_TOKEN, TokenPool
from ports import free_port

OTHER = """
    import sys
    from coatcheck.pool import TokenPool
    url, key, user = sys.argv[1:4]
    pool = TokenPool(lambda user: "a login that must not be", store=url, key=bytes.fromhex(key))
    with pool.lease(user) as held:
        print(held.token)
        held.renew(held.token + "+")
"""


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    assert server is not None, "redis-server is missing: apt-get install redis-server"
    port = free_port()
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(60)


@pytest.fixture(params=["a file on one machine", "a server for many machines"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param.startswith("a file"):
        yield f"sqlite:///{tmp_path}/tokens.db"
    else:
        with redis_server(tmp_path) as address:
            yield address


def test_a_process_uses_the_session_that_another_one_opened(url: str, tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    pool = TokenPool(lambda user: "opened here", store=url, key=key, max_uses=100)
    with pool.lease("SADMIN"):
        pass
    command = [sys.executable, "-c", textwrap.dedent(OTHER), url, key.hex(), "SADMIN"]
    for seen in ("opened here", "opened here+"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ}, cwd=tmp_path)
        assert (done.returncode, done.stdout.strip()) == (0, seen), done.stderr
    token = pool.check_out("SADMIN")
    assert token.token == "opened here++", "and what the upstream refreshed there is used here"
    assert pool.check_out("SADMIN") is NULL_TOKEN
    pool.check_in("SADMIN", token, "classic")
    assert pool.stats()["SADMIN"].logins_total == 1
    pool.close()


def test_the_file_is_for_its_owner_alone_and_sealed(tmp_path: Path) -> None:
    file = tmp_path / "tokens.db"
    pool = TokenPool(lambda user: "a token nobody may read", store=f"sqlite:///{file}", key=secrets.token_bytes(32))
    with pool.lease("SADMIN"):
        pass
    for part in tmp_path.iterdir():
        assert part.stat().st_mode & 0o077 == 0, part.name
        assert b"nobody may read" not in part.read_bytes()
    pool.close()
