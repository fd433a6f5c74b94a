"""Notices that this process was frozen or its loop blocked, and stops trusting leases (protocol section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from coatcheck.replication.copies import Copies


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> object: ...


class StallGuard:
    """A heart-beat. After a stall, other web servers may have claimed what is cached here, and their notices are
    still in the sockets, behind requests that were waiting too.

    ``monotonic`` answers seconds; ``call_later`` calls something after so many seconds, unless cancelled: an event
    loop's, or the simulation's.
    """

    BEAT_S = 0.05
    STALL_S = 0.25

    def __init__(
        self,
        copies: Copies,
        monotonic: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._copies = copies
        self._monotonic = monotonic
        self._call_later = call_later
        self._last = monotonic()
        self._timer = call_later(self.BEAT_S, self.beat)
        self.stalls = 0

    def is_late(self) -> bool:
        """Whether this process may have stalled just now: then the next beat must come before anything is served."""
        return self._monotonic() - self._last > self.STALL_S

    def beat(self) -> None:
        now = self._monotonic()
        if now - self._last > self.STALL_S:
            self.stalls += 1
            self._copies.void_leases()
        self._last = now
        self._timer = self._call_later(self.BEAT_S, self.beat)

    def stop(self) -> None:
        self._timer.cancel()
