"""Forks, and the end of the interpreter: in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

LIMIT_S = 120


def run(program: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parent_and_children_share_a_store_and_no_connection(store_url: str, tmp_path: Path) -> None:
    """As gunicorn does with ``preload_app``: the pool was made, and used, before the fork."""
    program = """
        import os, sys, threading, uuid
        from coatcheck.pool import TokenPool
        key = b"0123456789abcdef" * 2
        pool = TokenPool(lambda user: str(uuid.uuid4()), store=sys.argv[1], key=key, wait=60, per_user=2)
        def work(count):
            for number in range(count):
                with pool.lease("ann") as held:
                    page = os.path.join("held", held.token)
                    os.close(os.open(page, os.O_CREAT | os.O_EXCL))
                    os.unlink(page)
        os.mkdir("held")
        work(3)
        busy = [threading.Thread(target=work, args=(60,)) for _ in range(2)]
        for thread in busy:
            thread.start()
        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                status = 1
                try:
                    work(25)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        for thread in busy:
            thread.join()
        work(3)
        print([os.waitpid(child, 0)[1] for child in children])
        print(pool.stats()["ann"].logins_total <= 2)
        pool.close()
    """
    assert run(program, store_url, folder=tmp_path) == "[0, 0, 0, 0]\nTrue\n"


def test_forks_of_a_busy_process_do_not_hang_in_sqlite(tmp_path: Path) -> None:
    program = """
        import os, signal, threading
        from coatcheck.pool import TokenPool
        key = b"0123456789abcdef" * 2
        pool = TokenPool(lambda user: "t", store="sqlite:///tokens.db", key=key, per_user=8, wait=60)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                with pool.lease("ann"):
                    pass
        busy = [threading.Thread(target=work) for _ in range(3)]
        for thread in busy:
            thread.start()
        ended = []
        for _ in range(15):
            child = os.fork()
            if not child:
                signal.alarm(30)
                with pool.lease("bob"):
                    pass
                os._exit(0)
            ended.append(os.waitpid(child, 0)[1])
        stop.set()
        print(set(ended))
    """
    assert run(program, folder=tmp_path) == "{0}\n"


def test_a_lease_stays_its_parents(tmp_path: Path) -> None:
    program = """
        import os, sys
        from coatcheck.pool import LeaseLost, TokenPool
        key = b"0123456789abcdef" * 2
        pool = TokenPool(lambda user: "t", store="sqlite:///tokens.db", key=key, on_event=lambda event: None)
        with pool.lease("ann") as held:
            child = os.fork()
            if not child:
                try:
                    held.extend()
                except LeaseLost:
                    os.write(1, b"child: lost\\n")
                try:
                    held.__exit__(SystemExit, SystemExit(), None)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            held.renew("t+")
        with pool.lease("ann") as held:
            print("parent:", held.token)
    """
    assert run(program, folder=tmp_path) == "child: lost\nparent: t+\n"


def test_a_child_keeps_its_own_tokens_alive(tmp_path: Path) -> None:
    program = """
        import os, threading
        from coatcheck.pool import TokenPool
        touched = threading.Event()
        pool = TokenPool(lambda user: "t", keepalive=lambda user, token: touched.set(), keepalive_every="20ms")
        child = os.fork()
        if not child:
            with pool.lease("ann"):
                pass
            os._exit(0 if touched.wait(60) else 1)
        print(os.waitpid(child, 0)[1])
    """
    assert run(program, folder=tmp_path) == "0\n"


def test_a_logout_that_hangs_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    program = """
        import threading
        from coatcheck.pool import TokenPool
        pool = TokenPool(lambda user: "t", logout=lambda user, token: threading.Event().wait(), logout_timeout="300ms")
        with pool.lease("ann") as held:
            held.drop(sign_out=True)
        pool.close("100ms")
        print("closed")
    """
    assert run(program, folder=tmp_path) == "closed\n"


def test_logouts_that_are_under_way_are_finished_at_the_end(tmp_path: Path) -> None:
    program = """
        import os, time
        from coatcheck.pool import TokenPool
        def sign_out(user, token):
            time.sleep(0.05)
            os.write(1, f"out {user}\\n".encode())
        pool = TokenPool(lambda user: "t", logout=sign_out, logout_timeout=60)
        for number in range(10):
            with pool.lease(f"u{number}") as held:
                held.drop(sign_out=True)
    """
    assert sorted(run(program, folder=tmp_path).split("\n")[:-1]) == [f"out u{number}" for number in range(10)]


def test_a_logout_that_ends_its_thread_is_reported_and_the_next_ones_run(tmp_path: Path) -> None:
    program = """
        from coatcheck.pool import TokenPool
        events = []
        def sign_out(user, token):
            raise SystemExit(3)
        pool = TokenPool(lambda user: "t", logout=sign_out, on_event=lambda event: events.append(event.detail))
        for number in range(10):
            with pool.lease("ann") as held:
                held.drop(sign_out=True)
        pool.close(60)
        print(events == ["SystemExit"] * 10)
    """
    assert run(program, folder=tmp_path) == "True\n"


def test_a_child_goes_on_in_the_same_sqlite_file_when_its_parent_closes_it(tmp_path: Path) -> None:
    """A child inherits no lock of SQLite, but its memory of them: so whoever closed last would delete the journal."""
    program = """
        import os, subprocess, sys
        from coatcheck.pool import TokenPool
        def opened():
            key = b"0123456789abcdef" * 2
            return TokenPool(lambda user: f"login of {os.getpid()}", store="sqlite:///tokens.db", key=key)
        def renewed(pool, token):
            with pool.lease("ann") as held:
                seen = held.token
                held.renew(token)
            return seen
        if len(sys.argv) > 1:
            other = opened()
            print(renewed(other, sys.argv[1]), flush=True)
            other.close()
            raise SystemExit
        pool = opened()
        renewed(pool, "parent's")
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            try:
                print(renewed(pool, "child's"), flush=True)
                os.write(ready[1], b"1")
                os.read(go_on[0], 1)
                print(renewed(pool, "child's again"), flush=True)
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        print(renewed(pool, "parent's again"), flush=True)
        pool.close()
        subprocess.run([sys.executable, "again.py", "a third one's"], check=True)
        os.write(go_on[1], b"1")
        os.waitpid(child, 0)
        subprocess.run([sys.executable, "again.py", "the end"], check=True)
    """
    (tmp_path / "again.py").write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "again.py"], capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path)
    seen = ["parent's", "child's", "parent's again", "a third one's", "child's again"]
    assert done.stdout.splitlines() == seen, done.stderr


FORGOTTEN = """
    import os, sys, threading
    from coatcheck.pool import TokenPool
    def sign_out(user, token):
        os.write(1, f"out {user}\\n".encode())
        if user == "hangs":
            threading.Event().wait()
    pool = TokenPool(lambda user: "t", logout=sign_out, logout_timeout="500ms")
    for user in sys.argv[1:]:
        with pool.lease(user):
            pass
    held = pool.lease("lent").acquire()
"""


def test_a_pool_that_nobody_closed_logs_out_when_the_process_ends(tmp_path: Path) -> None:
    said = run(FORGOTTEN, "ann", "bob", folder=tmp_path)
    assert sorted(said.splitlines()) == ["out ann", "out bob", "out lent"]


def test_it_logs_out_also_where_no_thread_can_be_started_any_more(tmp_path: Path) -> None:
    """As from Python 3.12 on, when the interpreter ends."""
    late = """
    import atexit
    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    atexit.register(lambda: setattr(threading.Thread, "start", start))
    """
    said = run(FORGOTTEN + late, "ann", "bob", folder=tmp_path)
    assert sorted(said.splitlines()) == ["out ann", "out bob", "out lent"]


def test_a_logout_that_hangs_at_the_end_of_the_process_holds_it_up_for_its_time_out(tmp_path: Path) -> None:
    said = run(FORGOTTEN, "hangs", folder=tmp_path)
    assert sorted(said.splitlines()) == ["out hangs", "out lent"]


def test_a_child_does_not_log_its_parents_sessions_out(tmp_path: Path) -> None:
    program = """
    child = os.fork()
    if not child:
        os.write(1, b"child\\n")
        sys.exit()
    os.waitpid(child, 0)
    os.write(1, b"parent\\n")
    """
    said = run(FORGOTTEN + program, folder=tmp_path)
    assert said.splitlines() == ["child", "parent", "out lent"]


def test_a_pool_that_is_forgotten_says_so(tmp_path: Path) -> None:
    program = """
        import asyncio, gc, sys, warnings
        from coatcheck.pool import AsyncTokenPool, TokenPool
        def use(close, name, **more):
            pool = TokenPool(lambda user: "t", name=name, **more)
            with pool.lease("ann"):
                pass
            if close:
                pool.close()
        async def use_async(close):
            store = "sqlite:///tokens.db"
            pool = AsyncTokenPool(lambda user: "t", min_idle=1, store=store, key=b"0123456789abcdef" * 2)
            async with pool.lease("ann"):
                pass
            if close:
                await pool.close()
        for close in (True, False):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                TokenPool(lambda user: "never used")
                use(close, "plain")
                use(close, "ready", min_idle=1)
                asyncio.run(use_async(close))
                gc.collect()
            print(sorted(f"{each.category.__name__}: {each.message}" for each in told))
    """
    closed, forgotten = run(program, folder=tmp_path).splitlines()
    assert closed == "[]"
    named = ["<AsyncTokenPool 'default', sqlite>", "<TokenPool 'plain', in process>", "<TokenPool 'ready', in process>"]
    assert forgotten == str([f"ResourceWarning: never closed: {name}" for name in named])
