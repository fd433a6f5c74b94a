"""Stores that die, stand still, are full, locked, far away or not there: told clearly, in time, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from coatcheck.cli.pool_commands import pool as pool_command
from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, StoreUnavailable, TokenPool
from coatcheck.pool.stores import sqlite
from coatcheck.pool.stores.postgresql_connection import SETTINGS
from pool.conftest import running

KEY = b"0123456789abcdef" * 2
IN_TIME_S = 60.0


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Any]:
    yield from running("postgresql")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Any]:
    yield from running("redis")


def pool_on(url: str, **options: Any) -> TokenPool:
    return TokenPool(lambda user: f"token of {user}", store=url, key=KEY, **options)


def use(pool: TokenPool, user: str = "ann") -> str:
    with pool.lease(user) as held:
        return held.token


def together(count: int, work: Callable[[int], object]) -> None:
    """``work`` in so many threads at once; what one of them raises is raised here."""
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(work, number) for number in range(count)]:
            done.result(IN_TIME_S)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A server and its children stand still."""
    pids = [pid]
    os.kill(pid, signal.SIGSTOP)  # first: from now on it begins no child, and none that ends is gone
    try:
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
        for child in map(int, found.split()):
            pids.append(child)
            os.kill(child, signal.SIGSTOP)
        yield
    finally:
        for each in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def test_what_is_out_when_a_pool_closes_is_still_given_back(store_url: str) -> None:
    pool = pool_on(store_url)
    held = pool.lease("ann").acquire()
    pool.close(timeout=0)
    held.release(token="refreshed")
    pool._store.close()
    with pool_on(store_url) as other, other.lease("ann") as again:
        assert again.token == "refreshed"

    async def awaited() -> None:
        theirs = AsyncTokenPool(lambda user: "t", store=store_url, key=KEY, name="awaited")
        lent = await theirs.lease("ann").acquire()
        await theirs.close(timeout=0)
        await lent.release()
        assert (await theirs.stats())["ann"].free == 1
        await theirs._store.close()

    asyncio.run(awaited())


# -- PostgreSQL


def test_connections_that_the_server_ended_cost_nobody_a_call(postgresql: Any) -> None:
    with pool_on(postgresql.url, name="ended", wait=60) as pool:
        together(4, lambda number: [use(pool, f"user {number}") for _ in range(20)])
        with psycopg.connect(postgresql.url, autocommit=True) as operator:
            killed = operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchall()
        assert killed
        assert [use(pool, f"user {number}") for number in range(4)] == [f"token of user {n}" for n in range(4)]


def test_a_postgresql_that_stands_still_is_given_up(postgresql: Any) -> None:
    with pool_on(postgresql.url, name="still", wait=60) as pool:
        use(pool)
        with stopped(postgresql.process.pid):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="no answer within"):
                use(pool)
            assert time.monotonic() - began < IN_TIME_S
        assert use(pool) == "token of ann"


@pytest.mark.parametrize(("there", "told"), [(True, 'database "nowhere" does not exist'), (False, "connection")])
def test_why_there_is_no_connection_is_told_at_once(postgresql: Any, there: bool, told: str) -> None:
    url = f"{postgresql.url.rpartition('/')[0]}/nowhere" if there else "postgresql://u:hunter2@127.0.0.1:1/x"
    with pytest.raises(StoreUnavailable, match=told) as refusal:
        use(pool_on(url))
    assert "hunter2" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_url_that_cannot_be_read_is_refused_and_not_shown() -> None:
    for url in ("postgresql://u:hunter2@h/x?nonsense=1", "postgresql://u:hunter2@[::1/x"):
        with pytest.raises(ConfigError, match="store: write postgresql") as refusal:
            pool_on(url)
        assert "hunter2" not in str(refusal.value)
    for url in ("redis://127.0.0.1/first", "redis://127.0.0.1:6379/0x1"):
        with pytest.raises(ConfigError, match="the database must be a number"):
            pool_on(url)
    with pytest.raises(ConfigError, match="sqlite:///"):
        pool_on("sqlite:///%00")


def test_inspection_and_clean_up_do_not_wait_for_a_borrower(postgresql: Any) -> None:
    """Somebody holds the row of one user; everything else goes on."""
    with pool_on(postgresql.url, name="busy", per_user=2) as pool:
        use(pool, "ann")
        use(pool, "bob")
        pool.remove_token("bob")
        with psycopg.connect(postgresql.url) as borrower:
            borrower.execute("SELECT 1 FROM coatcheck_pool WHERE pool='busy' FOR UPDATE")
            assert pool.stats()["ann"].free == 1
            assert [row.user for row in pool.list()] == ["ann"]
            assert pool.clean_up() == 0
            borrower.rollback()
            borrower.execute("SELECT 1 FROM coatcheck_pool WHERE pool='busy' AND username='ann' FOR UPDATE")
            pool.clean_up()
            assert use(pool, "cleo") == "token of cleo"


def test_clean_up_passes_by_what_a_borrower_works_on(postgresql: Any) -> None:
    with pool_on(postgresql.url, name="overdue", ttl="20ms", lease="20ms", jitter=0) as pool:
        for user in ("ann", "bob"):
            held = pool.lease(user).acquire()
            assert held.token == f"token of {user}"
        until = time.monotonic() + IN_TIME_S
        while any((row.deadline_in_s or 0) > 0 for row in pool.list()):
            assert time.monotonic() < until
        with psycopg.connect(postgresql.url) as borrower:
            borrower.execute("SELECT 1 FROM coatcheck_pool WHERE pool='overdue' AND username='ann' FOR UPDATE")
            assert pool.clean_up() == 1
            assert {row.user for row in pool.list()} == {"ann"}
        assert pool.clean_up() == 1


def test_a_borrower_that_stands_still_in_the_middle_gives_the_user_up(postgresql: Any) -> None:
    """Its machine may be suspended between two statements."""
    with pool_on(postgresql.url, name="frozen") as pool:
        use(pool)
        with psycopg.connect(postgresql.url, **SETTINGS) as frozen:
            frozen.execute("SELECT 1 FROM coatcheck_pool WHERE pool='frozen' FOR UPDATE")
            assert use(pool) == "token of ann"
            with pytest.raises(psycopg.Error, match="idle-in-transaction"):
                frozen.execute("SELECT 1")


def test_waiting_callers_are_told_by_the_other_process(postgresql: Any) -> None:
    """They would find out by looking as well; so look only once a minute here."""
    from coatcheck.pool.stores import postgresql as store

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coatcheck.pool.stores.blob.TICKET_LIFE_S", 300.0)  # so they ask again after 100 s
        patch.setattr(store, "POLL_FIRST_S", 100.0)
        patch.setattr(store, "POLL_MAX_S", 100.0)
        patch.setattr(store, "POLL_LISTENING_S", 100.0)
        first, second = (pool_on(postgresql.url, name="told", per_user=1, wait=90) for _ in range(2))
        listener = second._store._listener  # type: ignore[attr-defined]
        for pool in (first, second):  # told by another process, then by its own
            held = first.lease("ann").acquire()
            waiting = threading.Thread(target=use, args=[pool])
            listener.need()
            until = time.monotonic() + IN_TIME_S
            while not listener.ear.listening:
                assert time.monotonic() < until
                time.sleep(0.005)
            waiting.start()
            while not pool._store._rows.wakers:  # type: ignore[attr-defined]
                assert time.monotonic() < until
                time.sleep(0.005)
            began = time.monotonic()
            held.release()
            waiting.join(IN_TIME_S)
            assert not waiting.is_alive()
            assert time.monotonic() - began < 30
        first.close()
        second.close()
        assert not listener._thread.is_alive()


# -- Redis


def test_a_redis_that_stands_still_is_given_up_by_everybody_at_once(redis_server: Any) -> None:
    """Not one after the other."""
    ended: list[float] = []
    with pool_on(redis_server.url, name="still", per_user=8) as pool:
        use(pool)

        def call(number: int) -> None:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                use(pool)
            ended.append(time.monotonic() - began)

        with stopped(redis_server.process.pid):
            together(12, call)
        assert max(ended) < 40, "twelve callers in turn would take a minute and more"
        assert use(pool) == "token of ann"


class Distance:
    """Everything to and from a port takes ``one_way_s`` longer."""

    def __init__(self, port: int, one_way_s: float) -> None:
        self._to = port
        self._one_way_s = one_way_s
        self._closed = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._server.accept()[0]
            except OSError:
                assert self._closed, "the listening socket is gone"
                return
            # An error here ends this thread, and pytest says so: whoever connects from then on hears nothing.
            far = socket.create_connection(("127.0.0.1", self._to))
            for one, other in ((near, far), (far, near)):
                with contextlib.suppress(OSError):  # already closed by its other end
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line: queue.Queue[tuple[float, bytes]] = queue.Queue()
                self._start(self._receive, one, line)
                self._start(self._send, other, line)

    def _receive(self, source: socket.socket, line: queue.Queue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                line.put((time.monotonic() + self._one_way_s, data))
        line.put((0.0, b""))

    def _send(self, target: socket.socket, line: queue.Queue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while (item := line.get())[1]:
                time.sleep(max(0.0, item[0] - time.monotonic()))
                target.sendall(item[1])
        target.close()

    def close(self) -> None:
        self._closed = True
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def test_a_redis_far_away_serves_several_processes(redis_server: Any) -> None:
    """80 ms there and back, four pools that want the same user: all are served."""
    distance = Distance(redis_server.port, 0.04)
    pools = [pool_on(f"redis://127.0.0.1:{distance.port}/1", name="far", wait=60) for _ in range(4)]
    served: list[str] = []
    together(4, lambda number: served.extend(use(pools[number]) for _ in range(3)))
    assert served == ["token of ann"] * 12
    for pool in pools:
        pool.close()
    distance.close()


def test_a_state_is_kept_as_long_as_its_tokens_live(redis_server: Any) -> None:
    with pool_on(redis_server.url, name="long", ttl="90d", jitter=0) as pool:
        use(pool)
        (key,) = [key for key in redis_server.redis.scan_iter("*:state") if redis_server.redis.ttl(key) > 8 * 86_400]
        assert redis_server.redis.ttl(key) > 90 * 86_400


# -- SQLite


def test_looking_creates_no_file_and_no_table(tmp_path: Path) -> None:
    missing = tmp_path / "mistyped.db"
    with pool_on(f"sqlite:///{missing}") as pool:
        assert pool.stats() == {}
        assert pool.list("ann") == []
        assert pool.clean_up() == 0
    assert not missing.exists()
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    before = other.read_bytes()
    with pool_on(f"sqlite:///{other}") as pool:
        assert pool.stats() == {}
    assert other.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize("words", [["ls"], ["stats"], ["clean-up"], ["remove", "ann"]])
def test_the_command_says_that_there_is_no_such_file(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "key").write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    (tmp_path / "key").chmod(0o600)
    missing = tmp_path / "mistyped.db"
    where = ["--store", f"sqlite:///{missing}", "--key-file", str(tmp_path / "key")]
    result = CliRunner().invoke(pool_command, [*words, *where])
    assert result.exit_code == 2
    assert f"there is no file {missing}" in result.output
    assert not missing.exists()


def test_a_file_that_is_locked_is_given_up_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.3)
    with pool_on(f"sqlite:///{tmp_path}/tokens.db") as pool:
        use(pool)
        with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                use(pool)
            assert pool.stats()["ann"].free == 1, "looking goes on"
            other.rollback()
        assert use(pool) == "token of ann"


def test_callers_behind_a_locked_file_do_not_wait_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 2.0)
    ended: list[float] = []
    with pool_on(f"sqlite:///{tmp_path}/tokens.db") as pool:
        use(pool)

        def call(number: int) -> None:
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                use(pool)
            ended.append(time.monotonic() - began)

        with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            together(20, call)
        assert max(ended) < 25, "twenty in turn would take 40 s"


def test_a_file_that_is_none_or_torn_says_so(tmp_path: Path) -> None:
    strange = tmp_path / "notes.txt"
    strange.write_text("these are my notes, and no database\n" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        use(pool_on(f"sqlite:///{strange}"))
    assert strange.read_text().startswith("these are my notes")
    with pytest.raises(StoreUnavailable):
        use(pool_on(f"sqlite:///{tmp_path}"))
    with pool_on(f"sqlite:///{tmp_path}/torn.db") as pool:
        use(pool)
    file = tmp_path / "torn.db"
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 8192)
    with pytest.raises(StoreUnavailable):
        use(pool_on(f"sqlite:///{file}"))


def test_a_full_disk_loses_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    """A file that may not grow, in a process of its own."""
    program = """
        import resource, signal
        from coatcheck.pool import StoreUnavailable, TokenPool
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        pool = TokenPool(lambda user: "t" * 60_000, store="sqlite:///tokens.db", key=b"0123456789abcdef" * 2)
        with pool.lease("ann"):
            pass
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        refused = 0
        for number in range(10):
            try:
                with pool.lease(f"user {number}"):
                    pass
            except StoreUnavailable as error:
                assert "full" in str(error) or "I/O" in str(error), error
                refused += 1
        assert refused > 0
        assert pool.stats()["ann"].free == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for user in ("ann", "zoe"):
            with pool.lease(user) as held:
                assert len(held.token) == 60_000
        print("well")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.stdout == "well\n", done.stderr
