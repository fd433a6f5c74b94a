"""Logging dropped tokens out behind everybody's back, for the pool for threads."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from coatcheck.pool.commands import Parting

MAX_LOGOUTS: Final = 1_000
"""Logouts that may wait in one process; more are left to the upstream's own time-out."""

PARALLEL_LOGOUTS: Final = 4

_unfinished: weakref.WeakSet[Logouts] = weakref.WeakSet()


class Logouts:
    """At most ``PARALLEL_LOGOUTS`` at once, ``MAX_LOGOUTS`` waiting; adding never blocks.

    The threads do not keep the process alive, because a logout may hang; at the end of the interpreter those that are
    left get ``patience_s``. Whoever brings a token after :meth:`finish` logs it out itself. ``skipped(user, why)`` is
    told of a token that nobody logs out.
    """

    def __init__(
        self, log_out: Callable[[str, Parting], None], skipped: Callable[[str, str], None], patience_s: float
    ) -> None:
        self._log_out = log_out
        self._skipped = skipped
        self._patience_s = patience_s
        self._queue: deque[tuple[str, Parting]] = deque()
        self._working = 0
        self._ended = False
        self._changed = threading.Condition()
        self._pid = os.getpid()
        _unfinished.add(self)

    def add(self, user: str, partings: tuple[Parting, ...]) -> None:
        for parting in partings:
            refusal = self._put(user, parting)
            if refusal is None:
                self._log_out(user, parting)
            elif refusal:
                self._skipped(user, refusal)  # its slot is free again after logout_timeout

    def wait_for_room(self, count: int, until: float) -> None:
        """Wait until so many more may wait, at most until ``until`` on the monotonic clock."""
        with self._changed:
            most = max(0, MAX_LOGOUTS - count)
            self._changed.wait_for(lambda: len(self._queue) <= most, max(0.0, until - time.monotonic()))

    def _put(self, user: str, parting: Parting) -> str | None:
        """Why it cannot be logged out, or nothing; ``None``: there is no background any more."""
        with self._changed:
            if self._ended:
                return None
            if len(self._queue) >= MAX_LOGOUTS:
                return "too many wait"
            self._queue.append((user, parting))
            if self._working >= PARALLEL_LOGOUTS:
                return ""
            try:
                threading.Thread(target=self._work, name="coatcheck-pool-logout", daemon=True).start()
            except RuntimeError:
                if self._working:
                    return ""
                if not _spare.takes(self._work):
                    self._queue.remove((user, parting))
                    return "no thread"
            self._working += 1
            return ""

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    if not self._queue:
                        return
                    user, parting = self._queue.popleft()
                    self._changed.notify_all()
                self._log_out(user, parting)
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Wait until all are done, at most ``timeout_s``; what is left then is not begun any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue and not self._working, max(0.0, timeout_s))
            self._ended = True
            left, self._queue = self._queue, deque()
        for user, _ in left:
            self._skipped(user, "closing")

    def finish_at_exit(self, until: float) -> None:
        if self._pid == os.getpid():  # what a fork inherited is its parent's, and so are the threads
            self.finish(min(until - time.monotonic(), self._patience_s))


class _Spare:
    """A thread in reserve: since Python 3.12 none can be started when the interpreter ends."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="coatcheck-pool-spare", daemon=True)
            with contextlib.suppress(RuntimeError):  # then what is left at the end is the upstream's
                thread.start()
                self._thread = thread

    def takes(self, work: Callable[[], None]) -> bool:
        if self._thread is None:
            return False
        self._work.put(work)
        return True

    def _run(self) -> None:
        while True:
            self._work.get()()


_spare = _Spare()


def prepare_for_exit() -> None:
    """There are sessions now that are to be logged out when the interpreter ends."""
    _spare.start()


def _start_anew() -> None:
    """A fork has not its parent's thread."""
    global _spare
    _spare = _Spare()


os.register_at_fork(after_in_child=_start_anew)


@atexit.register
def _finish() -> None:
    pending = list(_unfinished)
    until = time.monotonic() + max((logouts._patience_s for logouts in pending), default=0.0)
    for logouts in pending:
        logouts.finish_at_exit(until)
