"""How long to wait before a dead process is started again: exponential, jittered, bounded. Pure."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct):
    """Counts the deaths in a row; one that lived ``healthy_after_s`` starts the count again."""

    first_s: float = 0.1
    most_s: float = 10.0
    healthy_after_s: float = 10.0
    deaths: int = 0

    def delay_s(self, lived_s: float, jitter: float) -> float:
        """The wait after a death; ``jitter`` (0 to 1, random) takes up to half of it away.

        There is none after a first death in a long time: that process will not die at once again.
        """
        if lived_s >= self.healthy_after_s:
            self.deaths = 0
            return 0.0
        self.deaths += 1
        longest = min(self.most_s, self.first_s * 2.0 ** min(self.deaths - 1, 30))
        return longest * (1 - jitter / 2)
