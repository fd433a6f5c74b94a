"""What time it is in the farm, whatever one clock shows."""

from __future__ import annotations

import pytest

from coatcheck.replication.farm_clock import (
    CONFIRM_S,
    MAX_ROUND_TRIP_S,
    OWN,
    REMIND_S,
    STALE_S,
    TOLERANCE_MS,
    FarmClock,
)

NOON_MS = 1_763_700_000_000
HOUR_MS = 3_600_000


class Host:
    """A host, its clock, and the session servers that it hears; ``wrong`` says by how much which clock is wrong."""

    def __init__(self, servers: int = 2, **wrong: int) -> None:
        self.steady = 1000.0
        self.wrong = wrong
        self.servers = [f"s{number}" for number in range(1, servers + 1)]
        self.reports: list[tuple[str, int]] = []
        self.clock = FarmClock(
            lambda: self.steady,
            lambda: self.true_ms + self.wrong.get("own", 0),
            report=lambda name, deviation_ms: self.reports.append((name, deviation_ms)),
        )
        self.clock.expect(servers)

    @property
    def true_ms(self) -> float:
        return NOON_MS + self.steady * 1000

    def hear(self, *names: str, round_trip_s: float = 0.002) -> None:
        for name in names or self.servers:
            self.clock.heard(name, round_trip_s, self.true_ms - round_trip_s * 500 + self.wrong.get(name, 0))

    def go_on(self, seconds: float, *names: str) -> None:
        """Time passes, and the clocks are looked at once a second."""
        for _ in range(round(seconds)):
            self.steady += 1.0
            self.clock.tick()
            self.hear(*names)

    @property
    def error_ms(self) -> float:
        return self.clock.now_ms() - self.true_ms


@pytest.mark.parametrize("shift_ms", [HOUR_MS, -HOUR_MS, 5 * HOUR_MS, 2 * TOLERANCE_MS])
@pytest.mark.parametrize("servers", [0, 1, 2, 3])
def test_an_own_clock_that_jumps_and_jumps_back_changes_nothing(servers: int, shift_ms: int) -> None:
    host = Host(servers)
    host.go_on(10)
    host.wrong["own"] = shift_ms
    host.go_on(5)
    assert abs(host.error_ms) <= 1
    assert host.clock.status() == {"correction_ms": pytest.approx(-shift_ms, abs=1), "deviating": {"own": shift_ms}}
    assert host.reports == [(OWN, shift_ms)]
    host.wrong.clear()
    host.go_on(2)
    assert abs(host.error_ms) <= 1
    assert host.reports[1:] == [(OWN, 0)]
    assert host.clock.status() == {"correction_ms": 0, "deviating": {}}


@pytest.mark.parametrize("shift_ms", [HOUR_MS, -HOUR_MS])
@pytest.mark.parametrize("servers", [1, 2, 3])
def test_one_session_servers_clock_that_stays_wrong_changes_nothing(servers: int, shift_ms: int) -> None:
    host = Host(servers)
    host.go_on(10)
    host.wrong["s1"] = shift_ms
    host.go_on(3 * CONFIRM_S)
    assert abs(host.error_ms) <= 1
    assert host.clock.steps == 0
    assert [name for name, _ in host.reports] == ["s1"] * 3, "said once a minute"


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_an_own_clock_that_stays_wrong_changes_nothing_while_session_servers_answer(servers: int) -> None:
    host = Host(servers)
    host.go_on(10)
    host.wrong["own"] = HOUR_MS
    host.go_on(10 * CONFIRM_S)
    assert abs(host.error_ms) <= 1


@pytest.mark.parametrize("servers", [2, 3])
def test_who_starts_with_a_wrong_clock_takes_the_farms(servers: int) -> None:
    host = Host(servers, own=-HOUR_MS)
    host.hear()
    assert abs(host.error_ms) <= 1
    host.go_on(3 * CONFIRM_S)
    assert abs(host.error_ms) <= 1


@pytest.mark.parametrize("servers", [2, 3])
def test_who_starts_while_one_session_servers_clock_is_wrong_takes_the_majoritys(servers: int) -> None:
    host = Host(servers, s1=HOUR_MS)
    host.hear()
    assert abs(host.error_ms) <= 1
    host.go_on(6)
    assert abs(host.error_ms) <= 1


@pytest.mark.parametrize("wrong", ["own", "s1"])
def test_who_starts_without_a_majority_takes_the_earliest_until_there_is_one(wrong: str) -> None:
    host = Host(3, **{wrong: HOUR_MS})
    host.hear("s1")
    assert abs(host.error_ms) <= 1
    host.go_on(3 * CONFIRM_S, "s1")
    assert abs(host.error_ms) <= 1
    host.go_on(2, "s1", "s2", "s3")
    assert abs(host.error_ms) <= 1
    host = Host(3, **{wrong: -HOUR_MS})
    host.go_on(3 * CONFIRM_S, "s1")
    assert host.error_ms == pytest.approx(-HOUR_MS, abs=1), "nobody can tell"
    host.go_on(2, "s1", "s2", "s3")
    assert abs(host.error_ms) <= 1, "a majority is believed at once"


def test_all_clocks_of_one_host_jump_together_and_are_believed_when_they_stay() -> None:
    host = Host()
    host.go_on(10)
    host.wrong.update(own=HOUR_MS, s1=HOUR_MS, s2=HOUR_MS)
    host.go_on(CONFIRM_S - 2)
    assert abs(host.error_ms) <= 1
    host.go_on(4)
    assert host.error_ms == pytest.approx(HOUR_MS, abs=1)
    assert host.clock.steps == 1


def test_a_jump_that_does_not_last_is_never_added_up() -> None:
    host = Host(servers=0)
    for _ in range(20):
        host.wrong["own"] = HOUR_MS
        host.go_on(CONFIRM_S / 2)
        host.wrong.clear()
        host.go_on(CONFIRM_S / 2)
    assert host.clock.steps == 0
    assert abs(host.error_ms) <= 1


def test_a_host_that_is_cut_off_goes_on_with_the_time_it_had() -> None:
    host = Host()
    host.go_on(10)
    host.wrong["own"] = -HOUR_MS
    for _ in range(round(STALE_S + 3 * CONFIRM_S)):
        host.steady += 1.0
        host.clock.tick()
    assert abs(host.error_ms) <= 1, "one of three is no majority"


def test_clocks_that_drift_apart_slowly_are_followed() -> None:
    host = Host()
    for step in range(100):
        host.wrong["s1"] = 10 * step
        host.go_on(1)
    assert abs(host.error_ms) <= 1000
    assert host.clock.status()["deviating"] == {}


@pytest.mark.parametrize("shift_ms", [HOUR_MS, -HOUR_MS])
def test_a_clock_that_jumps_before_a_majority_was_heard_is_not_followed(shift_ms: int) -> None:
    host = Host(3)
    host.hear("s1")
    for _ in range(round(STALE_S) + 5):
        host.steady += 1.0
        host.clock.tick()
    host.wrong["own"] = shift_ms
    host.clock.tick()
    assert abs(host.error_ms) <= 1
    host.hear("s2")
    assert abs(host.error_ms) <= 1


def test_nobody_answers_yet_and_the_own_clock_is_held() -> None:
    host = Host()
    host.wrong["own"] = HOUR_MS
    host.clock.tick()
    assert abs(host.error_ms) <= 1


def test_a_reminder_comes_once_a_minute() -> None:
    host = Host()
    host.go_on(5)
    host.wrong["own"] = HOUR_MS
    host.go_on(REMIND_S - 1)
    assert len(host.reports) == 1
    host.go_on(2)
    assert len(host.reports) == 2


def test_a_slow_answer_is_taken_for_what_it_is() -> None:
    host = Host()
    host.hear(round_trip_s=0.9)
    assert abs(host.error_ms) <= 1


@pytest.mark.parametrize(("round_trip_s", "is_heeded"), [(MAX_ROUND_TRIP_S, True), (MAX_ROUND_TRIP_S + 0.001, False)])
def test_an_answer_that_took_too_long_is_no_vote(round_trip_s: float, is_heeded: bool) -> None:
    host = Host()
    host.go_on(10)
    for server in host.servers:
        host.clock.heard(server, round_trip_s, host.true_ms - round_trip_s * 1000)
    assert host.error_ms == pytest.approx(-round_trip_s * 500 if is_heeded else 0, abs=1)


def test_who_was_frozen_does_not_take_the_moment_of_the_question_for_now() -> None:
    """Its own clock is wrong by less than two seconds, and each of two steps that such clocks allow is believed."""
    host = Host(4, own=-1584)
    host.hear()
    host.steady += 6.75
    for server in host.servers[:3]:
        host.clock.heard(server, 6.75, host.true_ms - 6750)
    host.hear("s4")
    assert abs(host.error_ms) <= TOLERANCE_MS
