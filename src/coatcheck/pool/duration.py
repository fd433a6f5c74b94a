"""A length of time as people write it: ``"15m"``, ``"2s"``, ``"300ms"``, a number of seconds, or a ``timedelta``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from coatcheck.errors import ConfigError

Duration = str | int | float | timedelta

MAX_S: Final = 100 * 365.25 * 86_400
"""The longest time that can be set; the clocks and locks of the platform count no further than some centuries."""

MAX_COUNT: Final = 1_000_000

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)


def seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Return ``value`` in seconds; ``name`` is the setting. Raises ``ConfigError`` for what is no duration."""
    if isinstance(value, timedelta):
        amount = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        amount = float(min(value, 2 * MAX_S))  # a whole number may be larger than any float
    elif isinstance(value, str) and (match := _FORM.fullmatch(value.strip())):
        amount = float(match[1]) * _UNITS_S[match[2] or "s"]
    else:
        raise ConfigError(f'{name}: write "300ms", "2s", "15m", "12h", a number of seconds or a timedelta')
    if not math.isfinite(amount) or amount < least:
        raise ConfigError(f"{name}: must be finite and at least {least:g} s")
    if amount > MAX_S:
        raise ConfigError(f"{name}: must be at most a hundred years")
    return amount


def rate(name: str, value: object) -> tuple[float, int]:
    """Read ``"60/1m"`` (or ``(60, "1m")``): seconds between two on average, and how many may come at once."""
    if isinstance(value, str):
        count, slash, period = value.partition("/")
        parts: tuple[object, object] = (_count(count.strip()), period if slash else None)
    elif isinstance(value, tuple) and len(value) == 2:
        parts = value
    else:
        parts = (None, None)
    amount, period_s = parts
    if not isinstance(amount, int) or isinstance(amount, bool) or not 1 <= amount <= MAX_COUNT or period_s is None:
        raise ConfigError(f'{name}: write a count and a time, as "60/1m"')
    if isinstance(period_s, str) and period_s.strip() in _UNITS_S:
        period_s = f"1{period_s.strip()}"
    return seconds(name, period_s, least=0.001) / amount, amount


def _count(digits: str) -> int | None:
    return int(digits) if len(digits) <= len(str(MAX_COUNT)) and digits.isdecimal() else None
