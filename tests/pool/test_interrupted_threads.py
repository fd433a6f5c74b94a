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
from coatcheck.pool.lines import Lines


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


def interrupted_at(moment: str, monkeypatch: pytest.MonkeyPatch, pool: TokenPool) -> None:
    """One caller waits, and is interrupted once: the store has given it a place, and it does not know yet."""
    assert pool.memory is not None
    genuine = {"answered": Lines.heard, "watching": type(pool.memory).watch}[moment]
    owner: type = Lines if moment == "answered" else type(pool.memory)
    armed = [True]

    def interrupted(self: object, *arguments: object, **named: object) -> object:
        if armed.pop() if armed else False:
            raise KeyboardInterrupt
        return genuine(self, *arguments, **named)  # type: ignore[operator]

    with monkeypatch.context() as patched:
        patched.setattr(owner, genuine.__name__, interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.lease("ann", wait="60s").acquire()


@pytest.mark.parametrize("moment", ["answered", "watching"])
def test_a_place_of_nobody_holds_nobody_up(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = TokenPool(lambda user: "t", per_user=1)
    served: list[int] = []

    def call(number: int) -> None:
        with pool.lease("ann", wait="60s"):
            served.append(number)

    with pool.lease("ann"):
        interrupted_at(moment, monkeypatch, pool)
        callers = [threading.Thread(target=call, args=[number], daemon=True) for number in range(3)]
        for caller in callers:
            caller.start()
        until = time.monotonic() + 60
        while pool.stats()["ann"].waiting < 3:
            assert time.monotonic() < until
            time.sleep(0.01)
    until = time.monotonic() + 40
    for caller in callers:
        caller.join(max(0.0, until - time.monotonic()))
    assert sorted(served) == [0, 1, 2]
    stats = pool.stats()["ann"]
    assert (stats.free, stats.leased, stats.waiting) == (1, 0, 0)


def test_ctrl_c_at_any_moment_of_taking_a_place_holds_nobody_up() -> None:
    """In a process of its own: signals come within the first tenths of a millisecond of a lease."""
    program = """
        import random, signal, sys, time
        from coatcheck.pool import PoolTimeout, TokenPool
        dice = random.Random(int(sys.argv[1]))
        pool = TokenPool(lambda user: "t", per_user=1, wait="20ms", lease=600)
        armed, interrupts = [], 0
        def interrupt(*_):
            if armed:
                armed.clear()
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        holder = pool.lease("ann").acquire()
        until = time.monotonic() + 60
        while interrupts < 150 and time.monotonic() < until:
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, 0.00002 + dice.random() * 0.0004)
                with pool.lease("ann"):
                    pass
            except KeyboardInterrupt:
                interrupts += 1
            except PoolTimeout:
                pass
            armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        holder.release()
        with pool.lease("ann", wait="60s"):
            pass
        stats = pool.stats()["ann"]
        print(interrupts >= 150, stats.free, stats.leased, stats.logins, stats.waiting)
    """
    seed = random.randrange(10**6)
    command = [sys.executable, "-c", textwrap.dedent(program), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (done.stdout.strip(), done.returncode) == ("True 1 0 0 0", 0), (seed, done.stderr)


def test_a_signal_handler_that_borrows_never_waits_for_whom_it_interrupted() -> None:
    """In a process of its own: a handler has a lease or an error, and no token is in two hands."""
    program = """
        import random, signal, sys, time
        from coatcheck.pool import PoolError, TokenPool
        dice = random.Random(int(sys.argv[1]))
        count = iter(range(10**9))
        pool = TokenPool(lambda user: f"t{next(count)}", per_user=3, max_uses=50, login_rate=None, wait="60s")
        in_use, handled, refused = set(), 0, set()

        def use(held):
            assert held.token not in in_use, "in two hands"
            in_use.add(held.token)
            in_use.discard(held.token)

        def borrow(*_):
            global handled
            try:
                with pool.lease("ann", wait=0) as held:
                    use(held)
                handled += 1
            except PoolError as error:
                refused.add(str(error))
            signal.setitimer(signal.ITIMER_REAL, 0.00005 + dice.random() * 0.0003)

        signal.signal(signal.SIGALRM, borrow)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        until = time.monotonic() + 60
        while (handled < 500 or not refused) and time.monotonic() < until:
            with pool.lease("ann") as held:
                use(held)
        signal.setitimer(signal.ITIMER_REAL, 0)
        stats = pool.stats()["ann"]
        print(handled >= 500, sorted(refused), 1 <= stats.free <= 3, stats.waiting, sep="; ")
    """
    seed = random.randrange(10**6)
    command = [sys.executable, "-c", textwrap.dedent(program), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    why = "this thread is in the pool already: a signal handler interrupted it"
    assert (done.stdout.strip(), done.returncode) == (f"True; ['{why}']; True; 0", 0), (seed, done.stderr)
