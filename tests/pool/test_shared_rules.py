"""The rules of shared tokens by themselves: times are given, nothing waits."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.pool.refusals import PROTECTED_MAX_S
from coatcheck.pool.shared import rules
from coatcheck.pool.shared.rules import (
    MAX_ENTRIES,
    Begin,
    Begun,
    Count,
    DropShared,
    EndShared,
    Finish,
    Invalidate,
    KeepRefresh,
    RefreshFailed,
    ResetShared,
    SharedState,
    SlotGone,
    current_of,
    new_shared,
)
from coatcheck.pool.state import MAX_FAILING, REFUSED_S, Policy

POLICY = Policy(login_timeout_s=30.0, backoff_first_s=1.0, backoff_max_s=60.0)
NOW = 1_000_000.0
RIGHT, WRONG, NEW_KEY = (b"r" * 16,), (b"w" * 16,), b"n" * 16


def new() -> SharedState:
    return new_shared(int(NOW * 1_000_000))


def ask(state: SharedState, now: float, command: rules.Command, policy: Policy = POLICY) -> rules.Reply:
    return rules.apply(state, policy, now, command)


def begin(state: SharedState, now: float, whose: tuple[bytes, ...] = (), policy: Policy = POLICY) -> Begun:
    reply = ask(state, now, Begin(whose), policy)
    assert isinstance(reply, Begun)
    return reply


def finish(
    state: SharedState, now: float, begun: Begun, value: str, span_s: float = 100.0, refresh: str | None = None
) -> Begun:
    assert begun.fence
    reply = ask(state, now, Finish(begun.fence, value, span_s, 10.0, refresh))
    assert isinstance(reply, Begun)
    return reply


def value_of(begun: Begun) -> str | None:
    return None if begun.current is None else begun.current.value


def test_one_login_and_its_token_until_its_end() -> None:
    state = new()
    first = begin(state, NOW)
    assert first.current is None
    second = begin(state, NOW + 1)
    assert (second.fence, second.current) == (0, None)
    assert second.busy_s == 29.0
    assert value_of(finish(state, NOW + 2, first, "one")) == "one"
    assert value_of(begin(state, NOW + 50)) == "one"
    assert begin(state, NOW + 91).fence == 0, "it is renewed ten seconds before its end, not earlier"
    ahead = begin(state, NOW + 92)
    assert ahead.fence > first.fence
    assert value_of(ahead) == "one"
    other = begin(state, NOW + 93)
    assert (value_of(other), other.fence) == ("one", 0)
    assert other.busy_s > 0
    assert value_of(begin(state, NOW + 101.9)) == "one"
    assert value_of(begin(state, NOW + 102.0)) is None, "never after its end"
    assert value_of(finish(state, NOW + 103, ahead, "two")) == "two"


def test_a_login_that_takes_too_long_has_lost_its_place_and_replaces_nothing() -> None:
    state = new()
    dead = begin(state, NOW)
    assert begin(state, NOW + 29.9).fence == 0
    alive = begin(state, NOW + 30.0)
    assert alive.fence
    finish(state, NOW + 31, alive, "newer")
    late = ask(state, NOW + 32, Finish(dead.fence, "late", 100.0, 10.0))
    assert late == SlotGone()
    assert value_of(begin(state, NOW + 32)) == "newer"


def test_a_place_that_was_taken_under_a_clock_that_was_ahead_is_free_in_time() -> None:
    state = new()
    begin(state, NOW + 3600)
    assert begin(state, NOW).busy_s <= 30.0
    assert begin(state, NOW + 30.1).fence


def test_a_token_that_was_opened_under_a_clock_that_was_ahead_lives_no_longer_than_it_may() -> None:
    state = new()
    finish(state, NOW + 3601, begin(state, NOW + 3600), "one")
    assert current_of(state, POLICY, NOW, ()) is not None
    begin(state, NOW)
    assert value_of(begin(state, NOW + 99)) == "one"
    assert value_of(begin(state, NOW + 100)) is None


def test_a_token_is_renewed_at_half_of_its_life_at_the_earliest() -> None:
    state = new()
    begun = begin(state, NOW)
    ask(state, NOW, Finish(begun.fence, "short", 4.0, 60.0))
    assert begin(state, NOW + 1.9).fence == 0
    assert begin(state, NOW + 2.0).fence


def test_a_refusal_takes_the_refused_token_back_and_nothing_newer() -> None:
    state = new()
    one = finish(state, NOW, begin(state, NOW), "one").current
    assert one is not None
    assert ask(state, NOW + 5, Invalidate(one.number)) == Count(1)
    again = begin(state, NOW + 5)
    assert again.fence, "a login at once"
    assert again.current is None
    assert ask(state, NOW + 5, Invalidate(one.number)) == Count(0)
    finish(state, NOW + 6, again, "two")
    assert ask(state, NOW + 20, Invalidate(one.number)) == Count(0)
    assert value_of(begin(state, NOW + 20)) == "two"


def test_what_is_refused_again_at_once_is_protected_twice_as_long_each_time() -> None:
    state, now, waits = new(), NOW, []
    finish(state, now, begin(state, now), "first")
    for number in range(12):
        current = current_of(state, POLICY, now, ())
        assert current is not None
        if current.protected_s:
            assert ask(state, now + current.protected_s - 0.01, Invalidate(current.number)) == Count(0)
        now += current.protected_s
        waits.append(current.protected_s)
        assert ask(state, now, Invalidate(current.number)) == Count(1)
        policy = msgspec.structs.replace(POLICY, login_every_s=0.0)
        reply = finish(state, now, begin(state, now, policy=policy), f"next {number}", span_s=1_000.0)
        assert reply.current is not None
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert PROTECTED_MAX_S == 60
    current = current_of(state, POLICY, now, ())
    assert current is not None
    assert ask(state, now + 130, Invalidate(current.number)) == Count(1)
    fresh = finish(state, now + 130, begin(state, now + 130), "calm").current
    assert fresh is not None
    assert fresh.protected_s == 1.0, "a token that was good for a while begins anew"


def test_tokens_belong_to_the_credentials_that_opened_them() -> None:
    state = new()
    finish(state, NOW, begin(state, NOW, RIGHT), "right's")
    assert value_of(begin(state, NOW, RIGHT)) == "right's"
    wrong = begin(state, NOW, WRONG)
    assert (wrong.current, wrong.fence > 0) == (None, True)
    none = begin(state, NOW)
    assert (none.current, none.fence > 0) == (None, True)
    assert value_of(begin(state, NOW, (NEW_KEY, *RIGHT))) == "right's"
    assert value_of(begin(state, NOW, (NEW_KEY,))) == "right's", "renamed to the key that seals now"


def test_failures_hold_off_those_credentials_alone_and_the_old_token_is_good_to_its_end() -> None:
    state = new()
    finish(state, NOW, begin(state, NOW, RIGHT), "one")
    ahead = begin(state, NOW + 95, RIGHT)
    assert ask(state, NOW + 95, RefreshFailed(ahead.fence, credentials=RIGHT)) == Count(0)
    held_off = begin(state, NOW + 95.5, RIGHT)
    assert value_of(held_off) == "one"
    assert 0 < held_off.limited_s <= 0.5
    assert begin(state, NOW + 95.5, WRONG).fence
    again = begin(state, NOW + 96, RIGHT)
    assert again.fence
    ask(state, NOW + 96, RefreshFailed(again.fence, credentials=RIGHT))
    assert begin(state, NOW + 97, RIGHT).limited_s == pytest.approx(1.0), "the second pause is two seconds"
    third = begin(state, NOW + 98, RIGHT)
    ask(state, NOW + 98, RefreshFailed(third.fence, refused=True, credentials=RIGHT))
    assert begin(state, NOW + 99, RIGHT) == Begun(current_of(state, POLICY, NOW + 99, RIGHT), refused=True)
    assert begin(state, NOW + 101, RIGHT) == Begun(None, refused=True)
    assert begin(state, NOW + 98 + REFUSED_S, RIGHT).fence


def test_the_rate_of_logins_is_the_users() -> None:
    policy = msgspec.structs.replace(POLICY, login_every_s=10.0, login_burst=1)
    state = new()
    begun = begin(state, NOW, policy=policy)
    ask(state, NOW, Finish(begun.fence, "one", 5.0, 0.0), policy)
    later = begin(state, NOW + 6, policy=policy)
    assert (later.fence, later.limited_s) == (0, pytest.approx(4.0))
    assert begin(state, NOW + 10, policy=policy).fence


def test_a_refresh_token_goes_to_the_next_login_and_outlives_the_token() -> None:
    state = new()
    finish(state, NOW, begin(state, NOW), "one", refresh="r1")
    second = begin(state, NOW + 500)
    assert second.refresh_token == "r1"
    finish(state, NOW + 500, second, "two")
    third = begin(state, NOW + 1000)
    assert third.refresh_token == "r1", "without a new one the old one stays"
    finish(state, NOW + 1000, third, "three", refresh="r2")
    fourth = begin(state, NOW + 1095)
    assert fourth.refresh_token == "r2"
    ask(state, NOW + 1096, RefreshFailed(fourth.fence))
    fifth = begin(state, NOW + 1098)
    assert fifth.refresh_token == "r2", "a login that failed may have had another reason"
    ask(state, NOW + 1098, RefreshFailed(fifth.fence, refused=True, refresh_token="r2"))
    assert begin(state, NOW + 1098 + REFUSED_S).refresh_token is None


def test_operators_drop_and_forget() -> None:
    state = new()
    one = finish(state, NOW, begin(state, NOW), "one", refresh="r").current
    finish(state, NOW, begin(state, NOW, RIGHT), "two")
    assert one is not None
    assert ask(state, NOW, DropShared(one.number)) == Count(1, ("one",))
    assert ask(state, NOW, DropShared()) == Count(1, ("two",))
    begun = begin(state, NOW)
    assert begun.refresh_token == "r"
    ask(state, NOW, RefreshFailed(begun.fence, refused=True, refresh_token=begun.refresh_token))
    assert begin(state, NOW).refused
    assert ask(state, NOW, ResetShared()) == Count(0)
    assert begin(state, NOW).fence
    ask(state, NOW, ResetShared())
    assert state.is_idle(NOW)


def test_what_has_ended_leaves_nothing_behind_and_there_is_a_bound() -> None:
    state = new()
    for number in range(MAX_ENTRIES + 3):
        whose = (bytes([number]) * 16,)
        finish(state, NOW + number, begin(state, NOW + number, whose), f"token {number}")
    assert [entry.value for entry in state.entries] == [f"token {number}" for number in range(3, MAX_ENTRIES + 3)]
    ask(state, NOW + 200, EndShared())
    assert state.is_idle(NOW + 200)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "finish", "late", "fail", "refused", "invalidate", "wait", "back"]),
        st.integers(0, 2),
        st.floats(0.0, 40.0),
    ),
    max_size=60,
)


@given(steps=STEPS)
@settings(max_examples=200, deadline=None)
def test_one_login_at_a_time_and_nothing_old_comes_back(steps: list[tuple[str, int, float]]) -> None:
    """Callers with two passwords (or none), at random moments; the clock may go back by as much as it was ahead."""
    state, now = new(), NOW
    whose: list[tuple[bytes, ...]] = [(), RIGHT, WRONG]
    under_way: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    newest = {0: 0, 1: 0, 2: 0}
    for what, who, amount in steps:
        if what == "wait":
            now += amount
        elif what == "back":
            now -= amount
            # What was under way then may last until its whole length from the corrected time.
            under_way = {each: [(fence, min(at, now)) for fence, at in rows] for each, rows in under_way.items()}
        elif what == "begin":
            begun = begin(state, now, whose[who])
            if begun.fence:
                assert all(now >= at + POLICY.login_timeout_s for _, at in under_way[who])
                under_way[who].append((begun.fence, now))
            if begun.current is not None:
                assert begun.current.value.startswith(f"{who}:"), "nobody else's"
                assert begun.current.number >= newest[who], "and none of before"
        elif what == "invalidate":
            current = current_of(state, POLICY, now, whose[who])
            if current is not None and ask(state, now, Invalidate(current.number)) == Count(1):
                assert current_of(state, POLICY, now, whose[who]) is None
        elif under_way[who]:
            fence, _ = under_way[who].pop(0)
            if what in ("finish", "late"):
                reply = ask(state, now, Finish(fence, f"{who}:{fence}", 20.0, 5.0))
                if isinstance(reply, Begun):
                    assert fence > newest[who]
                    newest[who] = fence
            else:
                ask(state, now, RefreshFailed(fence, refused=what == "refused", credentials=whose[who]))


def test_the_password_of_a_live_token_needs_no_place_among_the_failing() -> None:
    """As with leases: eight wrong passwords hold up neither what opened a live token nor what worked last."""
    state = new()
    second = (b"2" * 16,)
    for whose, value in ((RIGHT, "of right"), (second, "of second")):
        finish(state, NOW, begin(state, NOW, whose), value)
    for number in range(MAX_FAILING):
        wrong = (bytes([number]) * 16,)
        begun = begin(state, NOW + 80, wrong)
        ask(state, NOW + 80, RefreshFailed(begun.fence, credentials=wrong))
    assert begin(state, NOW + 95, WRONG).limited_s > 0, "a ninth waits"
    for whose in (RIGHT, second):
        begun = begin(state, NOW + 95, whose)
        assert (begun.limited_s, begun.fence > 0) == (0.0, True), "due ahead of its end"
        finish(state, NOW + 95, begun, "renewed")


def late_login(state: SharedState, refresh: str) -> tuple[Begun, float]:
    """A login whose slot ended before it did; it brought ``refresh``."""
    begun = begin(state, NOW, RIGHT)
    late = NOW + POLICY.login_timeout_s + 1
    begin(state, late, WRONG)  # somebody has swept it away
    assert ask(state, late, Finish(begun.fence, "too late", 100.0, 10.0, refresh)) == SlotGone()
    return begun, late


def test_a_login_that_came_too_late_loses_no_refresh_token() -> None:
    """An upstream that rotates them has killed the one before (RFC 9700, 4.14)."""
    state = new()
    begun, late = late_login(state, "r1")
    assert ask(state, late, KeepRefresh(begun.fence, "r1", RIGHT)) == Count(0)
    again = begin(state, late, RIGHT)
    assert (again.current, again.refresh_token) == (None, "r1")
    finish(state, late, again, "token", refresh="r2")
    ask(state, late, KeepRefresh(begun.fence, "r1", RIGHT))
    assert begin(state, late + 95, RIGHT).refresh_token == "r2", "a later login has brought its own"


def test_a_refusal_of_the_former_refresh_token_is_none_of_the_newer_one() -> None:
    state = new()
    finish(state, NOW - 200, begin(state, NOW - 200, RIGHT), "token", refresh="r0")
    begun, late = late_login(state, "r1")
    other = begin(state, late, RIGHT)
    assert other.refresh_token == "r0"
    ask(state, late, KeepRefresh(begun.fence, "r1", RIGHT))
    ask(state, late, RefreshFailed(other.fence, True, True, RIGHT, refresh_token="r0"))
    again = begin(state, late + 1.1, RIGHT)
    assert (again.refused, again.refresh_token) == (False, "r1")
    ask(state, late + 1.1, RefreshFailed(again.fence, True, True, RIGHT, refresh_token="r1"))
    assert begin(state, late + 100, RIGHT).refused


def test_refresh_tokens_that_are_kept_have_a_bound() -> None:
    state = new()
    for number in range(3 * MAX_ENTRIES):
        ask(state, NOW, KeepRefresh(number + 1, "r", (bytes([number]) * 16,)))
    assert len(state.entries) == MAX_ENTRIES
