"""This host's clocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from coatcheck.replication.farm_clock import FarmClock


def steady_clock() -> Callable[[], float]:
    """A clock that answers seconds since the machine started, its sleep included: what a jump of the time is told by.

    It is asked with each request, so no function of ours stands around it.
    """
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)


def wall_ms() -> float:
    """What this host takes for the time: Unix milliseconds."""
    return time.time_ns() / 1_000_000


class HeldClock:
    """This host's clock, which does not follow a jump until it has lasted for
    :data:`coatcheck.replication.farm_clock.CONFIRM_S`. May be asked by several threads."""

    def __init__(self) -> None:
        self._clock = FarmClock(steady_clock(), wall_ms)
        self._lock = threading.Lock()

    def now_s(self) -> float:
        """Unix seconds."""
        with self._lock:
            self._clock.tick()
            return self._clock.now_ms() / 1000


OnTime = Callable[[str, float, float], None]
"""``on_time(name, round_trip_s, unix_ms)``: what a session server's clock showed."""
