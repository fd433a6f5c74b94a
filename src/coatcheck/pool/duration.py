"""Durations and rates of a pool: what ``coatcheck.duration`` reads, within a pool's bounds."""

from __future__ import annotations

from typing import Final

from coatcheck.duration import UNITS_S, Duration, parse_duration
from coatcheck.errors import ConfigError

__all__ = ["MAX_COUNT", "MAX_S", "Duration", "rate", "seconds"]

MAX_S: Final = 100 * 365.25 * 86_400
"""The longest time that can be set; the clocks and locks of the platform count no further than some centuries."""

MAX_COUNT: Final = 1_000_000


def seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Return ``value`` in seconds; ``name`` is the setting. Raises ``ConfigError`` for what is no duration."""
    try:
        amount = parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if amount < least:
        raise ConfigError(f"{name}: must be at least {least:g} s")
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
    if isinstance(period_s, str) and period_s.strip() in UNITS_S:
        period_s = f"1{period_s.strip()}"
    return seconds(name, period_s, least=0.001) / amount, amount


def _count(digits: str) -> int | None:
    return int(digits) if len(digits) <= len(str(MAX_COUNT)) and digits.isdecimal() else None
