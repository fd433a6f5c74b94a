"""Leases that are out for long: it is told where they were borrowed, to find who forgets to give them back."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

FRAMES: Final = 4
"""Calls that are told of where a lease was borrowed, the innermost first; those of the pool itself are left out."""
LEAST_PAUSE_S: Final = 0.05
OURS: Final = str(Path(__file__).parent)


class HeldLong:
    """The leases that are out, and since when; a timer looks, as long as there are any.

    ``tell(user, fence, detail)`` is told once of each that is out for ``after_s``, or so long since it was
    extended; in a thread of its own.
    """

    def __init__(
        self, after_s: float, tell: Callable[[str, int, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._after_s = after_s
        self._clock = clock
        self._tell = tell
        self.start_anew()

    def start_anew(self) -> None:
        """After a fork: the leases and the timer are the parent's."""
        # Each step at the dictionary is safe among threads.
        self._lent: dict[tuple[str, int], tuple[float, float, str]] = {}  # since, due, and where
        self._arming = threading.RLock()  # also for a signal handler that borrows
        self._armed = False

    def lent(self, user: str, fence: int) -> None:
        """The caller of the caller has borrowed it."""
        now = self._clock()
        self._lent[user, fence] = now, now + self._after_s, _where(sys._getframe(1))
        with self._arming:
            if self._armed:
                return
            self._armed = True
        self._look_in(self._after_s)

    def extended(self, user: str, fence: int) -> None:
        found = self._lent.get((user, fence))
        if found is not None:
            self._lent[user, fence] = found[0], self._clock() + self._after_s, found[2]

    def back(self, user: str, fence: int) -> None:
        self._lent.pop((user, fence), None)

    def look(self) -> None:
        """Tell of those that are due, and look again when the next one is."""
        now = self._clock()
        try:
            for (user, fence), (since, due, where) in list(self._lent.items()):
                if due <= now and self._lent.pop((user, fence), None) is not None:
                    self._tell(user, fence, f"lease {fence} is out for {now - since:.3g} s; borrowed at {where}")
        finally:  # whatever became of whoever is told
            with self._arming:
                dues = [due for _, due, _ in list(self._lent.values())]
                self._armed = bool(dues)
            if dues:
                self._look_in(max(LEAST_PAUSE_S, min(dues) - now))

    def _look_in(self, pause_s: float) -> None:
        timer = threading.Timer(pause_s, self.look)
        timer.name = "coatcheck-pool-leaks"
        timer.daemon = True
        try:
            timer.start()
        except BaseException as error:
            self._armed = False  # the next lease tries again
            if not isinstance(error, RuntimeError):  # no thread to be had
                raise


def _where(frame: Any) -> str:
    found: list[str] = []
    while frame is not None and len(found) < FRAMES:
        code = frame.f_code
        if not code.co_filename.startswith(OURS):
            found.append(f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return " < ".join(found)
