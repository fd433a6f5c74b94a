"""The contract of the SQLite store under faults: killed writers, rival processes, locks, bad files, a full disk."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from store_backends import ask, entry, new_key, opened, run, until, version

from coatcheck import sqlite_line
from coatcheck.errors import ConfigError
from coatcheck.replication.entry import Entry
from coatcheck.replication.put_rule import Verdict, encode_for_put
from coatcheck.stores import sqlite_file
from coatcheck.stores.events import StoreEvent, StoreEventKind
from coatcheck.stores.port import ACCEPTED, Unreachable
from coatcheck.stores.sqlite import SqliteStore
from coatcheck.stores.sqlite_file import Durability, Offer, SqliteFile
from file_locks import is_taken

V1 = version(1)

WRITER = """
    import asyncio, os, sys, time
    from coatcheck.replication.entry import Entry
    from coatcheck.replication.version import Version
    from coatcheck.stores.port import Accepted
    from coatcheck.stores.sqlite import SqliteStore
    from coatcheck.stores.sqlite_file import Durability

    async def main():
        store = SqliteStore("sqlite", sys.argv[1], time.time, durability=Durability[sys.argv[2]], timeout_s=30)
        await store.open()
        def put():
            key = os.urandom(16)
            def done(answer):
                if isinstance(answer, Accepted):
                    os.write(1, key.hex().encode() + b"\\n")
                put()
            store.put(key, None, Entry(Version(1, b"writer..", 0), (), False, 600_000, key * 20), done)
        for _ in range(16):
            put()
        await asyncio.sleep(60)
    asyncio.run(main())
"""

COUNTER = """
    import asyncio, sys, time
    from coatcheck.replication.entry import Entry
    from coatcheck.replication.version import Version
    from coatcheck.stores.port import Accepted, Refused
    from coatcheck.stores.sqlite import SqliteStore

    async def ask(method, *arguments):
        answer = asyncio.get_running_loop().create_future()
        method(*arguments, answer.set_result)
        return await answer

    async def main():
        store = SqliteStore("sqlite", sys.argv[1], time.time, timeout_s=30)
        await store.open()
        key, done = bytes(16), 0
        while done < 100:
            seen = await ask(store.get, key)
            epoch = seen.version.epoch + 1 if seen else 1
            count = int(seen.payload) + 1 if seen else 1
            new = Entry(Version(epoch, sys.argv[2].encode(), 0), (), False, 600_000, b"%d" % count)
            answer = await ask(store.put, key, seen.version if seen else None, new)
            done += isinstance(answer, Accepted)
            assert isinstance(answer, Accepted | Refused), answer
        await store.aclose()
    asyncio.run(main())
"""

FULL_DISK = """
    import asyncio, os, resource, signal, sys, time
    from coatcheck.replication.entry import Entry
    from coatcheck.replication.version import Version
    from coatcheck.stores.port import Accepted, Unreachable
    from coatcheck.stores.sqlite import SqliteStore

    async def ask(method, *arguments):
        answer = asyncio.get_running_loop().create_future()
        method(*arguments, answer.set_result)
        return await answer

    async def main():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 1024 * 1024, resource.RLIM_INFINITY))
        store = SqliteStore("sqlite", sys.argv[1], time.time, timeout_s=4)
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        await store.open()
        kept = []
        for _ in range(1000):
            key = os.urandom(16)
            answer = await ask(
                store.put, key, None, Entry(Version(1, b"writer..", 0), (), False, 600_000, os.urandom(4000))
            )
            if not isinstance(answer, Accepted):
                break
            kept.append(key)
        assert isinstance(answer, Unreachable) and answer.why, answer
        assert len(kept) > 20
        for key in kept:
            assert isinstance(await ask(store.get, key), Entry)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        deadline = time.monotonic() + 30
        while not store.reachable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        answer = await ask(
            store.put, os.urandom(16), None, Entry(Version(1, b"writer..", 0), (), False, 600_000, b"")
        )
        assert isinstance(answer, Accepted), answer
        await store.aclose()
        assert not faults, faults
    asyncio.run(main())
"""


def spawn(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), *arguments], stdout=subprocess.PIPE)


def store_at(path: Path, timeout_s: float = 4.0) -> SqliteStore:
    return SqliteStore("sqlite", path, time.time, timeout_s=timeout_s, on_event=lambda event: None)


@pytest.mark.parametrize("durability", [d.name for d in Durability])
def test_kill_9_of_a_writer_loses_nothing_that_was_accepted(tmp_path: Path, durability: str) -> None:
    path = tmp_path / "shared.db"
    accepted: list[bytes] = []
    for _ in range(3):
        writer = spawn(WRITER, str(path), durability)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait(60)
        accepted += [bytes.fromhex(line.decode()) for line in lines if len(line) == 33]
    assert len(accepted) >= 600

    async def story() -> None:
        async with opened(store_at(path)) as store:
            for key in accepted:
                found = await ask(store.get, key)
                assert isinstance(found, Entry)
                assert found.payload == key * 20

    run(story)


def test_processes_share_a_file_and_the_rule_holds_between_them(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    counters = [spawn(COUNTER, str(path), f"counter{at}") for at in range(3)]
    for counter in counters:
        assert counter.wait(150) == 0

    async def story() -> None:
        async with opened(store_at(path)) as store:
            assert (await ask(store.get, bytes(16))).payload == b"300", "no accepted put was overwritten unseen"

    run(story)


PASSER_BY = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1])
    connection.execute("SELECT count(*) FROM entries").fetchone()
    connection.close()
"""


def pass_by(path: Path) -> None:
    """A process that opens the database and closes it: it deletes the journal if it is alone, as far as it can see."""
    assert spawn(PASSER_BY, str(path)).wait(60) == 0


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def offer(key: bytes) -> Offer:
    new = entry(V1, life_ms=600_000)
    return Offer(key, b"", new.expires_in_ms, new.encode())


def test_the_look_at_the_files_health_gives_no_lock_away(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    file = SqliteFile(path, Durability.NORMAL, 5.0)
    file.put_all([offer(bytes(16))], lambda: 0)
    journal = path.with_name("shared.db-wal").stat().st_ino
    descriptors = open_descriptors()
    for _ in range(50):
        assert file.damage() is None
    assert open_descriptors() <= descriptors + 1, "SQLite keeps one descriptor to use it again"
    pass_by(path)
    assert path.with_name("shared.db-wal").stat().st_ino == journal, "the passer-by saw that it was not alone"
    file.close()


def test_the_journal_that_goes_with_the_last_connection_before_a_fork_is_no_damage(tmp_path: Path) -> None:
    """A look at the file's health between the fork and the next call: on a busy machine it ended the store."""
    file = SqliteFile(tmp_path / "sessions.db", Durability.NORMAL, 1.0)
    journal = tmp_path / "sessions.db-wal"
    try:
        file.probe(1)
        assert journal.exists()
        assert file.pause()  # as before a fork
        file.go_on()
        assert not journal.exists()
        assert file.damage() is None
        file.probe(2)
        journal.unlink()
        assert file.damage() == "the file's journal was removed"
    finally:
        file.close()


def test_nobody_is_told_of_a_write_to_a_journal_that_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    file = SqliteFile(path, Durability.NORMAL, 5.0)
    file.put_all([offer(bytes(16))], lambda: 0)
    path.read_bytes()  # what an app's own backup does: this process's locks are gone
    pass_by(path)
    with pytest.raises(sqlite3.DatabaseError, match="journal was removed"):
        file.put_all([offer(b"1" * 16)], lambda: 0)
    file.close()

    async def story() -> None:
        async with opened(store_at(path)) as store:
            path.read_bytes()
            pass_by(path)
            assert isinstance(await ask(store.put, bytes(16), None, entry(V1)), Unreachable)
            await until(lambda: store.reachable)
            key = new_key()
            assert await ask(store.put, key, None, entry(V1)) == ACCEPTED
            async with opened(store_at(path)) as other:
                for each in (store, other):
                    assert (await ask(each.get, key)).version == V1

    run(story)


def test_a_forked_child_has_locks_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"
    file = SqliteFile(path, Durability.NORMAL, 5.0)
    file.put_all([offer(b"parent----------")], lambda: 0)
    (wait_here, go), (told_here, told) = os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        done = 1
        try:
            assert file.find(b"parent----------", 0) is not None
            os.write(told, b"1")
            os.read(wait_here, 1)
            assert file.put_all([offer(b"child-----------")], lambda: 0)[0].verdict is Verdict.ACCEPTED
            done = 0
        finally:
            os._exit(done)
    os.close(told)
    assert os.read(told_here, 1) == b"1"
    file.close()
    pass_by(path)
    os.write(go, b"1")
    assert os.waitpid(child, 0)[1] == 0
    for end in (wait_here, go, told_here):
        os.close(end)
    again = SqliteFile(path, Durability.NORMAL, 5.0)
    assert again.find(b"child-----------", 0) is not None, "what the child wrote is in the file"
    again.close()


def test_two_stores_of_one_process_and_a_passer_by(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"

    async def story() -> None:
        async with opened(store_at(path)) as one:
            async with opened(store_at(path)):
                assert await ask(one.put, bytes(16), None, entry(V1)) == ACCEPTED
            pass_by(path)
            assert await ask(one.put, b"1" * 16, None, entry(V1)) == ACCEPTED
            counted = spawn(COUNT_ENTRIES, str(path))
            assert counted.communicate(timeout=60)[0].split() == [b"2"]

    run(story)


COUNT_ENTRIES = """
    import sqlite3, sys
    print(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM entries").fetchone()[0])
"""


def test_a_reader_that_could_not_open_the_file_tries_again(tmp_path: Path) -> None:
    class Unlucky(SqliteStore):
        failures = 1

        def _open_reader(self) -> SqliteFile:
            if self.failures:
                self.failures -= 1
                raise sqlite3.OperationalError("database is locked")
            return super()._open_reader()

    async def story() -> None:
        store = Unlucky("sqlite", tmp_path / "shared.db", time.time, on_event=lambda event: None)
        async with opened(store):
            assert await ask(store.put, bytes(16), None, entry(V1)) == ACCEPTED

    run(story)


def test_whoever_opens_the_file_waits_for_those_who_make_it_or_close_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last to close the file takes its log away, under a lock that nobody can read behind; on a busy machine that
    took longer than a reader waits, and the first requests of a new process were refused."""
    really, patience_s = sqlite_file._prepare, []

    def prepare(connection: sqlite3.Connection, durability: Durability, busy_timeout_s: float) -> None:
        patience_s.append(busy_timeout_s)
        if len(patience_s) == 2:  # the reader
            time.sleep(min(busy_timeout_s, LOCKED_S))
            if busy_timeout_s < LOCKED_S:
                raise sqlite3.OperationalError("database is locked")
        really(connection, durability, busy_timeout_s)

    monkeypatch.setattr(sqlite_file, "_prepare", prepare)

    async def story() -> None:
        told: list[StoreEvent] = []
        store = SqliteStore("sqlite", tmp_path / "shared.db", time.time, on_event=told.append)
        async with opened(store):
            assert [event.kind for event in told] == [StoreEventKind.REACHABLE]
            assert len(patience_s) == 2
            assert store._reader is not None
            with store._reader._turn() as connection:
                assert connection.execute("PRAGMA busy_timeout").fetchone() == (5,), "a read is in the loop's thread"

    run(story)


LOCKED_S = 0.3


def test_who_waits_to_write_comes_before_the_one_who_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a web server was locked out for seconds by another one that wrote again and again, and its
    requests were refused. Ten times, for it would often be so by chance. Two files are as good as two processes."""
    monkeypatch.setattr(sqlite_line, "PATIENCE_S", 60.0)
    first, second = (SqliteFile(tmp_path / "shared.db", Durability.NORMAL, 60.0) for _ in range(2))
    order: list[str] = []

    def write(file: SqliteFile, name: str) -> None:
        """The clock is read within the transaction, so the order is that of the write lock."""
        offer = Offer(name.encode()[:16].ljust(16), b"", 600_000, encode_for_put(entry(V1)))
        file.put_all([offer], lambda: (order.append(name), 1_000_000)[1])

    for file in (first, second):
        file.probe(0)
    line = os.open(tmp_path / "shared.db-line", os.O_CREAT | os.O_RDWR)
    for _ in range(10):
        with first._turn() as connection, first._writing(connection):
            waiting = threading.Thread(target=write, args=(second, "who waited"))
            waiting.start()
            began = time.monotonic()
            while not is_taken(line):
                assert time.monotonic() - began < 20, "nobody stands in line"
        write(first, "who had it")
        waiting.join(60)
    assert order == ["who waited", "who had it"] * 10
    os.close(line)
    first.close()
    second.close()


def test_a_locked_file_is_unreachable_in_time_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"

    async def story() -> None:
        async with opened(store_at(path, timeout_s=1.0)) as store:
            key = new_key()
            await ask(store.put, key, None, entry(V1))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                began = time.monotonic()
                assert isinstance(await ask(store.put, key, V1, entry(version(2))), Unreachable)
                assert time.monotonic() - began < 1.0 + 10.0
                assert store.reachable is False
                assert isinstance(await ask(store.put, key, V1, entry(version(2))), Unreachable)
                other.execute("ROLLBACK")
            await until(lambda: store.reachable)
            assert (await ask(store.get, key)).version == V1
            assert await ask(store.put, key, V1, entry(version(2))) == ACCEPTED

    run(story)


def test_what_is_no_database_of_ours_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_bytes(b"These are somebody's notes, not a database. " * 100)
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection, connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    before = {path: path.read_bytes() for path in (text, foreign)}

    async def story() -> None:
        for path in (text, foreign, tmp_path / "missing" / "folder.db", tmp_path):
            store = store_at(path)
            await store.open()
            assert store.reachable is False
            refused = await ask(store.put, new_key(), None, entry(V1))
            assert isinstance(refused, Unreachable)
            assert refused.why
            assert isinstance(await ask(store.get, new_key()), Unreachable)
            await store.aclose()

    run(story)
    assert before == {path: path.read_bytes() for path in (text, foreign)}


def test_a_file_overwritten_with_garbage_is_unreachable_and_never_raises(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"

    async def story() -> None:
        async with opened(store_at(path)) as store:
            for _ in range(200):
                await ask(store.put, new_key(), None, entry(V1, bytes(2000)))
            for name in (path, path.with_name("shared.db-wal")):
                with name.open("r+b") as file:
                    size = file.seek(0, 2)
                    file.seek(0)
                    file.write(b"\xa5" * size)
            answers = [await ask(store.put, new_key(), None, entry(V1)) for _ in range(20)]
            answers += [await ask(store.get, new_key()) for _ in range(5)]
            assert any(isinstance(answer, Unreachable) for answer in answers)
            await until(lambda: not store.reachable)

    run(story)


def test_a_full_disk_is_unreachable_and_what_was_accepted_stays(tmp_path: Path) -> None:
    assert spawn(FULL_DISK, str(tmp_path / "shared.db")).wait(100) == 0


def test_when_nothing_comes_from_the_disk_it_is_said_what_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on, put_all = threading.Event(), SqliteFile.put_all

    def stuck(file: SqliteFile, *arguments: Any) -> Any:
        assert going_on.wait(60)
        return put_all(file, *arguments)

    async def story() -> None:
        async with opened(store_at(tmp_path / "shared.db", timeout_s=1.0)) as store:
            await ask(store.get, new_key())
            monkeypatch.setattr(SqliteFile, "put_all", stuck)
            key = new_key()
            refused = await ask(store.put, key, None, entry(V1))
            assert isinstance(refused, Unreachable)
            assert refused.why == "no commit within 1 s: its thread writes"
            going_on.set()
            await until(lambda: store.reachable)
            assert (await ask(store.get, key)).version == V1

    run(story)


def test_a_removed_file_is_noticed_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"

    async def story() -> None:
        async with opened(store_at(path)) as store:
            key = new_key()
            await ask(store.put, key, None, entry(V1))
            changes: list[bool] = []
            store.watch(lambda name, reachable: changes.append(reachable))
            for name in tmp_path.iterdir():
                name.unlink()
            await until(lambda: changes == [False, True])
            assert await ask(store.get, key) is None
            assert await ask(store.put, key, None, entry(V1)) == ACCEPTED

    run(story)


def test_expired_entries_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shared.db"

    async def story() -> None:
        async with opened(store_at(path)) as store:
            for _ in range(100):
                await ask(store.put, new_key(), None, entry(V1, life_ms=50))
            kept = new_key()
            await ask(store.put, kept, None, entry(V1))

            def rows() -> int:
                with contextlib.closing(sqlite3.connect(path)) as other:
                    return int(other.execute("SELECT count(*) FROM entries").fetchone()[0])

            await until(lambda: rows() == 1)
            assert (await ask(store.get, kept)).version == V1

    run(story)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(store_at(tmp_path / "shared.db")) as store:
            await ask(store.put, new_key(), None, entry(V1))
            assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}

    run(story)


@pytest.mark.parametrize("path", ["", ":memory:", "file:x?mode=memory"])
def test_a_path_that_cannot_be_shared_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="SQLite store"):
        SqliteStore("sqlite", path, time.time)


def test_a_file_that_another_process_makes_in_this_moment_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, connect, said = tmp_path / "new.db", sqlite3.connect, []

    class Late(sqlite3.Connection):
        """Between its first two looks at the new file somebody else makes it."""

        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
            looks = sql == "PRAGMA application_id" or "sqlite_master" in sql
            if looks:
                said.append(sql)
            if looks and len(said) == 2:
                monkeypatch.setattr(sqlite3, "connect", connect)
                SqliteFile(path, Durability.NORMAL, 5.0).close()
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, factory=Late, **named))
    SqliteFile(path, Durability.NORMAL, 5.0).close()
    assert len(said) == 2
