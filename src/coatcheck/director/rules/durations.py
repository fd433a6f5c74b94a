"""How long requests took, in buckets; two numbers are changed for each request, and nothing is kept of it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The advice of OpenTelemetry's HTTP conventions for ``http.server.request.duration``."""
CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")
"""Of final status codes. Each code of its own would be a series that an app, or a stranger, chooses."""


class Durations:
    """By the class of the status code: how many requests took at most so long, and all together."""

    __slots__ = ("_by_hundred", "_rows")

    def __init__(self) -> None:
        self._rows: list[list[float]] = [[0] * (len(BOUNDS_S) + 2) for _ in CLASSES]
        """For each class the counts, and the sum behind them."""
        ok, moved, refused, failed = self._rows
        # This is on the way of every request: one look-up instead of comparing.
        self._by_hundred = [failed, failed, ok, moved, refused, *[failed] * 5]

    def add(self, status: int, took_s: float) -> None:
        """Count a request that was answered in full. A status that is in no class counts as 5xx."""
        row = self._by_hundred[status // 100]
        row[bisect_left(BOUNDS_S, took_s)] += 1
        row[-1] += took_s

    def status(self) -> dict[str, Any]:
        """``counts``: for each bound those above the one before, and the rest; ``sum_s``."""
        return {
            name: {"counts": row[:-1], "sum_s": round(row[-1], 6)}
            for name, row in zip(CLASSES, self._rows, strict=True)
        }
