"""What stands out: counts per user and per caller, in windows, with thresholds. No clock inside; pure.

A window begins with the first event that it counts. So whoever stays within the threshold in every such length of time
is never told of; whoever does more than twice of it in one always is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import msgspec

MAX_WATCHED: Final = 10_000
"""Users and callers whose counts are kept, each count by itself; of more, those that were least lately seen go."""
MAX_DIFFERENT: Final = 1_000
"""The largest threshold of different users: each of them is remembered for the length of a window."""


class Counted(Enum):
    """Everything that is counted; the value is its name in settings and in events."""

    BORROWS_PER_USER = "borrows_per_user"
    BORROWS_PER_CALLER = "borrows_per_caller"
    LOGINS_PER_USER = "logins_per_user"
    LOGINS_PER_CALLER = "logins_per_caller"
    FAILED_LOGINS_PER_USER = "failed_logins_per_user"
    FAILED_LOGINS_PER_CALLER = "failed_logins_per_caller"
    LOST_PER_USER = "lost_per_user"
    LOST_PER_CALLER = "lost_per_caller"
    HELD_LONG_PER_USER = "held_long_per_user"
    HELD_LONG_PER_CALLER = "held_long_per_caller"
    USERS_PER_CALLER = "users_per_caller"


class Sight(Enum):
    """What happens, as far as it is counted."""

    BORROWED = "borrowed"
    LOGIN = "login"
    FAILED_LOGIN = "failed login"
    LOST = "lost"
    HELD_LONG = "held long"


_OF_USER: Final = {
    Sight.BORROWED: Counted.BORROWS_PER_USER,
    Sight.LOGIN: Counted.LOGINS_PER_USER,
    Sight.FAILED_LOGIN: Counted.FAILED_LOGINS_PER_USER,
    Sight.LOST: Counted.LOST_PER_USER,
    Sight.HELD_LONG: Counted.HELD_LONG_PER_USER,
}
_OF_CALLER: Final = {
    Sight.BORROWED: Counted.BORROWS_PER_CALLER,
    Sight.LOGIN: Counted.LOGINS_PER_CALLER,
    Sight.FAILED_LOGIN: Counted.FAILED_LOGINS_PER_CALLER,
    Sight.LOST: Counted.LOST_PER_CALLER,
    Sight.HELD_LONG: Counted.HELD_LONG_PER_CALLER,
}


class Threshold(msgspec.Struct, frozen=True):
    """More than ``most`` within ``period_s`` stand out."""

    most: int
    period_s: float


DEFAULTS: Final[Mapping[str, str]] = {
    "failed_logins_per_user": "20/5m",
    "failed_logins_per_caller": "50/5m",
    "lost_per_user": "20/5m",
    "lost_per_caller": "20/5m",
    "held_long_per_caller": "20/5m",
}
"""What is counted if nothing else is said: nothing that an honest crowd does often, however large it is."""


class Anomaly(msgspec.Struct, frozen=True):
    """``whose``: the user or caller that was counted. ``user`` and ``caller``: of the event that was one too many."""

    count: Counted
    whose: str
    threshold: Threshold
    user: str
    caller: str

    def words(self) -> str:
        """One line."""
        most, period_s = self.threshold.most, self.threshold.period_s
        return f"{self.count.value}: more than {most} in {period_s:g} s, of {self.whose!r}"


class _Window:
    __slots__ = ("count", "ends_at", "users")

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.count = 0
        self.users: set[str] = set()


class Watch:
    """Counts what is seen. ``most_watched``: see :data:`MAX_WATCHED`. Not safe among threads."""

    def __init__(self, thresholds: Mapping[Counted, Threshold], most_watched: int = MAX_WATCHED) -> None:
        self._thresholds = dict(thresholds)
        self._most = most_watched
        self._windows: dict[Counted, OrderedDict[str, _Window]] = {count: OrderedDict() for count in thresholds}

    def see(self, now: float, sight: Sight, user: str, caller: str) -> list[Anomaly]:
        """Count this; what stands out now, once for each count and window. ``now``: seconds that never go back.

        An empty name is nobody's: nothing is counted for it.
        """
        found: list[Anomaly] = []

        def judge(count: Counted, whose: str, number_of: Callable[[_Window], int]) -> None:
            threshold = self._thresholds.get(count)
            if threshold is None or not whose:
                return
            window = self._window(now, count, whose, threshold)
            if window.count > threshold.most:
                return  # told already
            window.count = number_of(window)
            if window.count > threshold.most:
                window.users = set()
                found.append(Anomaly(count, whose, threshold, user, caller))

        def different(window: _Window) -> int:
            window.users.add(user)
            return len(window.users)

        judge(_OF_USER[sight], user, lambda window: window.count + 1)
        judge(_OF_CALLER[sight], caller, lambda window: window.count + 1)
        if sight is Sight.BORROWED:
            judge(Counted.USERS_PER_CALLER, caller, different)
        return found

    def _window(self, now: float, count: Counted, whose: str, threshold: Threshold) -> _Window:
        windows = self._windows[count]
        window = windows.pop(whose, None)
        if window is None or now >= window.ends_at:
            window = _Window(now + threshold.period_s)
        windows[whose] = window
        if len(windows) > self._most:
            windows.popitem(last=False)
        return window
