"""The threads that WSGI apps run in: so many at once, a bounded queue in front of them, and nobody waits for them at
the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

MAX_WAITING: Final = 1000
"""Requests of one web server that wait for a thread; one more is answered with 503."""

Job = Callable[[], None]


class ThreadPool:
    """At most ``threads`` threads, each begun when it is first needed. Jobs are taken in the order in which they come.

    The threads are daemons: a process that is to end does not wait for an app that hangs. (Those of
    ``concurrent.futures`` would be joined.)
    """

    def __init__(self, threads: int, max_waiting: int = MAX_WAITING) -> None:
        self.threads = threads
        self._limit = threads + max_waiting
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._begun = 0
        self._open = 0
        """Jobs that were taken and are not done."""

    @property
    def is_full(self) -> bool:
        return self._open >= self._limit

    def submit(self, job: Job) -> bool:
        """Run it in a thread, now or when one is free; ``False``: too many wait already. It raises nothing."""
        with self._lock:
            if self.is_full:
                return False
            self._open += 1
            if self._begun < min(self.threads, self._open):
                self._begun += 1
                threading.Thread(target=self._run, name=f"coatcheck wsgi {self._begun}", daemon=True).start()
        self._jobs.put(job)
        return True

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            finally:
                del job  # what a request held is not kept until the next one comes
                with self._lock:
                    self._open -= 1

    def status(self) -> dict[str, Any]:
        """Numbers for operators."""
        is_open = self._open
        return {"most": self.threads, "busy": min(is_open, self.threads), "waiting": max(0, is_open - self.threads)}
