"""What the operator may ask for, and the times that follow from it."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.sessions.policy import HOUR_MS, MINUTE_MS, SessionPolicy


def test_the_defaults_are_sound() -> None:
    policy = SessionPolicy()
    policy.check()
    assert (policy.theft, policy.rolled_back, policy.conflict) == ("close", "close", "last_write")
    assert (policy.rotate_after_ms, policy.grace_ms) == (MINUTE_MS, MINUTE_MS)
    assert (policy.idle_timeout_ms, policy.absolute_timeout_ms) == (30 * MINUTE_MS, 12 * HOUR_MS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grace_ms": 0}, 'grace: 0 needs theft = "refuse"'),
        ({"grace_ms": 0, "theft": "report"}, 'grace: 0 needs theft = "refuse"'),
        ({"grace_ms": -1}, "grace_ms must not be negative"),
        ({"rotate_after_ms": -1}, "rotate_after_ms must not be negative"),
        ({"leeway_ms": -1}, "leeway_ms must not be negative"),
        ({"idle_timeout_ms": 0}, "must be positive"),
        ({"absolute_timeout_ms": -5}, "must be positive"),
    ],
)
def test_settings_that_cannot_work_get_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        SessionPolicy(**settings).check()
    assert "\n" not in str(caught.value)


def test_the_letter_of_a3_is_allowed() -> None:
    SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse").check()


@pytest.mark.parametrize(
    ("rotate_after_ms", "oldest"),
    [(0, 8_000 + 1_000 + 500), (1, 100_000 + 500)],
    ids=["with every response the timestamp is the last activity", "otherwise it bounds the absolute timeout"],
)
def test_the_oldest_token_worth_looking_up(rotate_after_ms: int, oldest: int) -> None:
    policy = SessionPolicy(
        rotate_after_ms=rotate_after_ms, idle_timeout_ms=8_000, absolute_timeout_ms=100_000, leeway_ms=500
    )
    assert policy.max_token_age_ms == oldest


@pytest.mark.parametrize("rotate_after_ms", [0, 60_000])
@pytest.mark.parametrize(("idle", "absolute"), [(1_000, 10_000), (10_000, 1_000), (30 * MINUTE_MS, 12 * HOUR_MS)])
def test_a_close_is_remembered_longer_than_any_token_lives(rotate_after_ms: int, idle: int, absolute: int) -> None:
    policy = SessionPolicy(rotate_after_ms=rotate_after_ms, idle_timeout_ms=idle, absolute_timeout_ms=absolute)
    assert policy.tombstone_ms > policy.max_token_age_ms
    assert policy.tombstone_ms > policy.absolute_timeout_ms
    assert policy.linger_ms >= policy.touch_ms
