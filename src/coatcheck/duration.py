"""A length of time as people write it: ``"15m"``, ``"2s"``, ``"300ms"``, a number of seconds, or a ``timedelta``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

Duration = str | int | float | timedelta

UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORM: Final = re.compile(r"(-?\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_MAX_TEXT: Final = 400
"""Characters; the longest number that a float can hold has 309 digits."""


def parse_duration(value: object) -> float:
    """Return seconds.

    Raises:
        ValueError: not a duration; the message says which forms are.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = _as_float(value)
    elif isinstance(value, str) and len(value) <= _MAX_TEXT and (match := _FORM.fullmatch(value.strip())):
        seconds = float(match[1]) * UNITS_S[match[2] or "s"]
    else:
        raise ValueError('write a duration such as "300ms", "2s", "15m", "12h" or a number of seconds')
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("a duration is finite and not negative")
    return seconds


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number may be larger than any float
        return math.inf


def format_duration(seconds: float) -> str:
    """Write seconds in the largest unit that needs no fraction: ``1800.0`` is ``"30m"``."""
    if seconds == 0:
        return "0"
    for unit in ("d", "h", "m", "s", "ms"):
        amount = seconds / UNITS_S[unit]
        if amount >= 1 and math.isclose(amount, round(amount)):
            return f"{round(amount)}{unit}"
    return f"{seconds:g}s"
