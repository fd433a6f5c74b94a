"""When an unknown key ID is worth a question: a key may be newer than what this process was told of.

Whoever shows bytes can name keys that nobody has, so questions cost the same however many do: one at a time, so seldom
as is agreed, and for a bounded number of those who want to know. An answer counts for who has come before the question
was asked, and for nobody else: what a later one shows may be newer than the answer.
"""

from __future__ import annotations

from typing import Final

ASK_EVERY_S: Final = 1.0
"""So seldom one process asks about keys that it does not know."""
MAX_WAITING: Final = 256
"""Requests that may wait for an answer; further ones are refused, and may come again."""


class Freshness:
    """The questions of one process about one key ring. Times are seconds of a clock that only goes on."""

    def __init__(self, every_s: float = ASK_EVERY_S) -> None:
        self._every_s = every_s
        self._asked_at = float("-inf")
        self._waiting = 0

    def admit(self) -> bool:
        """Whether one more may wait for an answer; each that was admitted ends with :meth:`leave`."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        return True

    def leave(self) -> None:
        """One that was admitted waits no more."""
        self._waiting -= 1

    def wait_s(self, now: float) -> float:
        """How long until the next question may be asked."""
        return max(0.0, self._asked_at + self._every_s - now)

    def asks(self, now: float) -> None:
        """The question is asked: whoever comes from here on needs the next one."""
        self._asked_at = now
