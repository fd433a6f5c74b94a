"""What stands out, by counts in windows: the pure rule, and how thresholds are set."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import ConfigError
from coatcheck.pool import TokenPool
from coatcheck.pool.anomalies import Anomaly, Counted, Sight, Threshold, Watch
from coatcheck.pool.options import Settings

PERIOD_S = 10.0

STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 6.0),
        st.sampled_from(Sight),
        st.sampled_from(["ann", "bob", "cleo"]),
        st.sampled_from(["job", "web", ""]),
    ),
    max_size=60,
)


def watching(most: int, **options: Any) -> Watch:
    return Watch({counted: Threshold(most, PERIOD_S) for counted in Counted}, **options)


def counted_of(anomaly: Anomaly, sight: Sight, user: str, caller: str) -> tuple[Sight, str, str]:
    """What is counted: a sight, of a user or a caller; the users of a caller."""
    if anomaly.count is Counted.USERS_PER_CALLER:
        return sight, "users of", anomaly.whose
    per_user = anomaly.count.value.endswith("_per_user")
    assert anomaly.whose == (user if per_user else caller)
    return sight, "user" if per_user else "caller", anomaly.whose


@given(STEPS, st.integers(1, 6))
def test_who_stays_within_is_never_told_of_and_who_does_twice_as_much_always_is(
    steps: list[tuple[float, Sight, str, str]], most: int
) -> None:
    watch, now = watching(most), 1_000.0
    seen: dict[tuple[Sight, str, str], list[tuple[float, str]]] = defaultdict(list)
    told: dict[tuple[Sight, str, str], list[float]] = defaultdict(list)
    for step_s, sight, user, caller in steps:
        now += step_s
        seen[sight, "user", user].append((now, user))
        if caller:
            seen[sight, "caller", caller].append((now, user))
        if caller and sight is Sight.BORROWED:
            seen[sight, "users of", caller].append((now, user))
        for anomaly in watch.see(now, sight, user, caller):
            told[counted_of(anomaly, sight, user, caller)].append(now)
    for key, events in seen.items():

        def number(since: float, until: float, key: Any = key, events: Any = events) -> int:
            within = [user for at, user in events if since < at <= until]
            return len(set(within)) if key[1] == "users of" else len(within)

        for at in told[key]:
            assert number(at - PERIOD_S, at) > most, "a false alarm"
        for at, _ in events:
            if key[1] != "users of" and number(at - PERIOD_S, at) > 2 * most:
                assert any(at - 2 * PERIOD_S < when <= at for when in told[key]), "missed"
        pauses = [later - first for first, later in zip(told[key], told[key][1:], strict=False)]
        assert all(pause_s > 0 for pause_s in pauses)
        assert len(told[key]) <= (events[-1][0] - events[0][0]) / PERIOD_S + 1, "once in a window"
    assert not [key for key in told if key[2] == ""], "nobody is not counted"


def test_it_is_told_once_in_a_window_with_what_it_is_about() -> None:
    watch = Watch({Counted.USERS_PER_CALLER: Threshold(2, 60.0)})
    told = [watch.see(float(number), Sight.BORROWED, f"user {number}", "job") for number in range(61)]
    assert [number for number, found in enumerate(told) if found] == [2]
    (anomaly,) = told[2]
    assert anomaly.words() == "users_per_caller: more than 2 in 60 s, of 'job'"
    assert (anomaly.user, anomaly.caller) == ("user 2", "job")
    assert watch.see(61.0, Sight.BORROWED, "user 61", "job") == []
    assert watch.see(62.0, Sight.BORROWED, "user 62", "job") != []


def test_the_same_user_again_is_not_another_one() -> None:
    watch = Watch({Counted.USERS_PER_CALLER: Threshold(1, 60.0)})
    assert not [found for _ in range(50) for found in watch.see(1.0, Sight.BORROWED, "ann", "job")]


def test_of_many_names_those_that_were_least_lately_seen_are_forgotten() -> None:
    watch = watching(1, most_watched=3)
    watch.see(0.0, Sight.LOST, "ann", "")
    for number in range(3):
        watch.see(1.0, Sight.LOST, f"user {number}", "")
    assert watch.see(2.0, Sight.LOST, "ann", "") == [], "its count began anew"
    assert max(len(windows) for windows in watch._windows.values()) == 3
    for number in range(2):
        watch.see(3.0, Sight.LOST, f"other {number}", "")
        assert len(watch.see(3.0, Sight.LOST, f"other {number}", "")) == 1


@pytest.mark.parametrize(
    "anomalies",
    [
        "60/1m",
        5,
        ["lost_per_user"],
        {"lost_per_usr": "5/1m"},
        {"lost_per_user": "many"},
        {"lost_per_user": 5},
        {"lost_per_user": "5/soon"},
        {"lost_per_user": "0/1m"},
        {"users_per_caller": "1001/1m"},
    ],
)
def test_a_wrong_threshold_is_named_where_the_pool_is_built(anomalies: Any) -> None:
    with pytest.raises(ConfigError, match="anomalies"):
        TokenPool(anomalies=anomalies)


def test_thresholds_are_read_as_every_other_rate() -> None:
    found = Settings(None, {"anomalies": {"users_per_caller": "50/1m", "lost_per_user": None}}).thresholds
    assert found is not None
    assert found[Counted.USERS_PER_CALLER] == Threshold(50, 60.0)
    assert Counted.LOST_PER_USER not in found
    assert found[Counted.LOST_PER_CALLER] == Threshold(20, 300.0), "a default"
    assert Settings(None, {}).thresholds is None
    assert not [counted for counted in Settings(None, {"anomalies": {}}).thresholds or () if "borrows" in counted.value]
