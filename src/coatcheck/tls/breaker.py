"""When to stop asking a store that does not answer in time. Pure: the time is given."""

from __future__ import annotations

from typing import Final

FAILURES_IN_A_ROW: Final = 3
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0


class Breaker:
    """Lets every call pass until :data:`FAILURES_IN_A_ROW` failed; then none for a while, then one to try.

    Times are seconds on a clock that never goes back. One thread at a time; calls may be told in any order.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._closed_until = 0.0
        self._paused_at = 0.0

    def lets_pass(self, now: float) -> bool:
        """Whether a call may be made. After a pause one may; the others wait for what it finds."""
        if self._failures < FAILURES_IN_A_ROW:
            return True
        if now < self._closed_until:
            return False
        self._closed_until = now + self._pause_s
        return True

    def would_let_pass(self, now: float) -> bool:
        """Whether a call may be made; nothing is counted."""
        return self._failures < FAILURES_IN_A_ROW or now >= self._closed_until

    def succeeded(self) -> None:
        """A call was answered in time."""
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, now: float, began: float) -> None:
        """A call was not answered, or too late. One that ``began`` before the pause says nothing new."""
        if self._failures >= FAILURES_IN_A_ROW and began < self._paused_at:
            return
        self._failures += 1
        if self._failures < FAILURES_IN_A_ROW:
            return
        if self._failures > FAILURES_IN_A_ROW:
            self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S)
        self._paused_at = now
        self._closed_until = now + self._pause_s
