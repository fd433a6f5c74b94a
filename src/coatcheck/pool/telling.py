"""Records on their way to a function that may be slow: nobody waits for it."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

MAX_UNTOLD: Final = 10_000
"""Records that wait for the function; of more, the newest are lost."""
TOO_MANY: Final = "too many wait"
EXIT_S: Final = 5.0
"""At the end of the interpreter the function gets so long for what waits, for all pools together."""

_tellers: weakref.WeakSet[Teller] = weakref.WeakSet()


class Teller:
    """Calls ``tell`` with each item, one after the other, in a thread of its own; :meth:`put` never blocks.

    What does not fit is lost, and so is what ``tell`` fails at. ``told_lost(count, why)`` is called in that thread when
    it has caught up, with how many were lost since; and by :meth:`finish`. A fork begins with nothing.
    """

    def __init__(self, tell: Callable[[Any], None], told_lost: Callable[[int, str], None]) -> None:
        self._tell = tell
        self._told_lost = told_lost
        self.start_anew()
        _tellers.add(self)

    def start_anew(self) -> None:
        """After a fork: the thread, and what waits for it, are the parent's."""
        # Both may be taken again by a signal handler that borrows. The lock is never held while anybody is told.
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self.lost = 0
        self._said = 0
        self._why = ""

    def put(self, item: Any) -> None:
        with self._lock:
            if self._queue.qsize() >= MAX_UNTOLD:
                self._lose(TOO_MANY)
                return
            self._queue.put(item)
            if self._thread is None:
                self._start()

    def _lose(self, why: str, count: int = 1) -> None:
        with self._lock:
            self.lost += count
            self._why = why

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, args=[self._queue], name="coatcheck-pool-audit", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except BaseException as error:
            self._thread = None  # the next one tries again
            if not isinstance(error, RuntimeError):  # no thread to be had
                raise

    def _work(self, items: SimpleQueue[Any]) -> None:
        while (item := items.get()) is not None:
            try:
                self._tell(item)
            except BaseException as error:  # noqa: BLE001 - of a function of the user's; the others are told
                self._lose(type(error).__name__)
            if items.empty():
                self._say()

    def _say(self) -> None:
        with self._lock:
            since, self._said = self.lost - self._said, self.lost
        if since:
            self._told_lost(since, self._why)

    def end(self) -> None:
        """Let the thread go when all is told, which nobody waits for."""
        with self._lock:
            self._queue.put(None)
            self._thread = None

    def finish(self, timeout_s: float) -> None:
        """Wait until all is told, at most so long; what is left then is lost. What comes later begins anew."""
        with self._lock:
            thread, self._thread = self._thread, None
            items, self._queue = self._queue, SimpleQueue()
        items.put(None)
        if thread is None:
            self._work(items)
        elif thread is not threading.current_thread():
            thread.join(max(0.0, timeout_s))
            if thread.is_alive():
                self._lose("it takes too long", _taken_out(items))
        self._say()


def _taken_out(items: SimpleQueue[Any]) -> int:
    """How many there were; the thread finds none of them, but its end."""
    count = 0
    while not items.empty():
        count += items.get() is not None
    items.put(None)
    return count


def _start_anew() -> None:
    for teller in list(_tellers):
        teller.start_anew()


os.register_at_fork(after_in_child=_start_anew)


@atexit.register
def _finish() -> None:
    until = time.monotonic() + EXIT_S
    for teller in list(_tellers):
        teller.finish(until - time.monotonic())
