"""Which leases this process holds in a store that it shares with others: what closing waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PRUNE_FROM: Final = 1_000
"""So many are kept before those that are over are looked for; after that, twice as many as were left."""


class LiveLeases:
    """Leases by user and fencing number, each until its deadline: one that another process ended, ends here as well."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._deadlines: dict[tuple[str, int], float] = {}
        self._prune_at = PRUNE_FROM

    def add(self, user: str, fencing: int, deadline: float) -> None:
        self._deadlines[user, fencing] = deadline
        if len(self._deadlines) >= self._prune_at:
            self._prune()
            self._prune_at = max(PRUNE_FROM, 2 * len(self._deadlines))

    def discard(self, lease: tuple[str, int]) -> None:
        """``lease``: the user and the fencing number."""
        self._deadlines.pop(lease, None)

    def clear(self) -> None:
        self._deadlines.clear()

    def __len__(self) -> int:
        self._prune()
        return len(self._deadlines)

    def _prune(self) -> None:
        now = self._clock()
        for lease, deadline in list(self._deadlines.items()):
            if now >= deadline:
                self._deadlines.pop(lease, None)
