"""Threads that are interrupted anywhere, as by Ctrl-C: nothing leaks, nobody starves."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from coatcheck.pool import LoginFailed, PoolError, TokenPool


class Interrupted(BaseException):
    """What KeyboardInterrupt is to the main thread."""


@pytest.mark.parametrize("seed", range(4))
def test_callbacks_that_raise_anything_leave_no_trace(seed: int) -> None:
    dice = random.Random(seed)
    in_use: set[str] = set()
    problems: list[BaseException] = []
    count = iter(range(100_000))

    def sign_in(user: str) -> str:
        time.sleep(dice.random() * 0.002)
        if dice.random() < 0.2:
            raise dice.choice([Interrupted, ConnectionError])
        return f"t{next(count)}"

    pool = TokenPool(
        sign_in, per_user=2, max_uses=4, login_rate=None, login_backoff=(0, 0), wait="20s", on_event=lambda event: None
    )

    def call() -> None:
        for _ in range(30):
            try:
                with pool.lease("ann") as held:
                    assert held.token not in in_use
                    in_use.add(held.token)
                    try:
                        time.sleep(dice.random() * 0.001)
                        if dice.random() < 0.2:
                            raise Interrupted
                    finally:
                        in_use.discard(held.token)
            except (Interrupted, LoginFailed):
                continue
            except BaseException as error:  # noqa: BLE001 - handed to the test
                problems.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert problems == []
    stats = pool.stats()["ann"]
    assert (stats.leased, stats.logins, stats.waiting) == (0, 0, 0)


def test_an_exception_from_outside_while_waiting_gives_the_place_up() -> None:
    pool = TokenPool(lambda user: "t", per_user=1)
    ended: list[BaseException] = []

    begun = threading.Event()

    def wait() -> None:
        try:
            begun.set()
            # Python delivers it between two waits; so wait in short ones.
            while True:
                try:
                    pool.lease("ann", wait="20ms").acquire()
                except PoolError:
                    continue
        except BaseException as error:  # noqa: BLE001 - handed to the test
            ended.append(error)

    with pool.lease("ann"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert begun.wait(60)
        time.sleep(0.1)
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))
        thread.join(60)
        assert isinstance(ended[0], Interrupted)
        assert pool.stats()["ann"].waiting == 0
    assert pool.stats()["ann"].free == 1


@pytest.mark.parametrize("where", ["waiting", "login", "holding"])
def test_ctrl_c(where: str) -> None:
    """In a process of its own: a signal reaches the main thread in the middle of a blocking call."""
    program = """
        import signal, sys, threading, time
        from coatcheck.pool import TokenPool
        where = sys.argv[1]
        def sign_in(user):
            if where == "login":
                time.sleep(90)
            return "t"
        pool = TokenPool(sign_in, per_user=1, wait=90, login_timeout=100, lease=100)
        blocker = pool.lease("ann").acquire() if where == "waiting" else None
        counted = {"waiting": "waiting", "login": "logins", "holding": "leased"}[where]

        def interrupt():
            while "ann" not in pool.stats() or not getattr(pool.stats()["ann"], counted):
                time.sleep(0.01)
            time.sleep(0.3)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        began = time.monotonic()
        try:
            with pool.lease("ann"):
                time.sleep(90)
        except KeyboardInterrupt:
            pass
        assert time.monotonic() - began < 60, "it hung"
        if blocker:
            blocker.release()
        stats = pool.stats()["ann"]
        print(stats.free, stats.leased, stats.logins, stats.waiting)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    free = 1 if where == "waiting" else 0
    assert (done.stdout.strip(), done.returncode) == (f"{free} 0 0 0", 0), done.stderr
