"""The rules: which server, which are fit, what may be sent again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coatcheck.director.rules.forwarding import route_tag_reader
from coatcheck.director.rules.routing import (
    Balancer,
    Check,
    Health,
    HealthPolicy,
    ServerState,
    checked,
    eject,
    heard,
    servers_of,
    stalled,
)

P, R, U, S, N = Check.PASSED, Check.REFUSED, Check.UNFIT, Check.SILENT, Check.INCONCLUSIVE
WELL, BUSY, GONE = Health.HEALTHY, Health.BUSY, Health.GONE


def three(**changes: dict[str, object]) -> list[ServerState]:
    states = servers_of((f"web-{n}", f"tag-{n}") for n in range(3))
    for state in states:
        state.health = WELL
    for name, values in changes.items():
        for key, value in values.items():
            setattr(states[int(name[-1])], key, value)
    return states


@pytest.mark.parametrize(
    ("tag", "tried", "changes", "expected"),
    [
        (b"tag-1", (), {}, 1),
        (b"tag-1", (), {"s1": {"in_flight": 99}}, 1),
        (b"tag-1", (1,), {}, 0),
        (b"tag-1", (), {"s1": {"health": GONE}}, 0),
        (b"tag-1", (), {"s1": {"draining": True}}, 0),
        (b"unknown", (), {"s0": {"in_flight": 1}}, 1),
        (None, (), {"s0": {"in_flight": 1}, "s1": {"in_flight": 1}}, 2),
        (None, (2,), {"s0": {"in_flight": 1}, "s1": {"in_flight": 2}}, 0),
        (None, (), {"s0": {"health": GONE}, "s1": {"draining": True}}, 2),
        (None, (0, 1), {"s2": {"health": GONE}}, 0),
        (None, (0, 1), {"s2": {"health": BUSY}}, 2),
        (b"tag-0", (0, 1), {"s2": {"draining": True}}, 0),
        (b"tag-1", (), {"s1": {"health": BUSY}}, 1),
        (b"tag-1", (), {"s1": {"health": BUSY, "draining": True}}, 0),
        (None, (), {"s0": {"health": BUSY}, "s1": {"in_flight": 9}, "s2": {"in_flight": 8}}, 2),
        (None, (), {"s0": {"health": BUSY, "in_flight": 1}, "s1": {"health": BUSY}, "s2": {"health": GONE}}, 1),
        (None, (), {"s0": {"health": GONE}, "s1": {"health": GONE}, "s2": {"health": GONE}}, None),
    ],
)
def test_the_choice(tag, tried, changes, expected) -> None:  # type: ignore[no-untyped-def]
    states = three(**changes)
    chosen = Balancer(states).choose(tag, [states[n] for n in tried])
    assert chosen is (None if expected is None else states[expected])


@pytest.mark.parametrize(
    ("tag", "changes", "expected"),
    [
        (b"tag-1", {"s1": {"health": BUSY}}, 0),
        (b"tag-1", {"s0": {"health": GONE}, "s1": {"health": BUSY}, "s2": {"health": BUSY}}, None),
        (b"tag-1", {}, 1),
    ],
)
def test_without_patience_no_busy_server_is_chosen(tag, changes, expected) -> None:  # type: ignore[no-untyped-def]
    states = three(**changes)
    chosen = Balancer(states).choose(tag, (), patient=False)
    assert chosen is (None if expected is None else states[expected])


BROWSERS = [b"visitor=%d" % number for number in range(300)]


@pytest.mark.parametrize("why", [{"health": GONE}, {"draining": True}])
def test_a_browser_whose_server_is_away_goes_to_one_other(why: dict[str, Any]) -> None:
    states = three(s1=why)
    balancer = Balancer(states)
    chosen = [balancer.choose(b"tag-1", (), browser=browser) for browser in BROWSERS]
    assert [balancer.choose(b"tag-1", (), browser=browser) for browser in reversed(BROWSERS)] == chosen[::-1]
    assert 100 < chosen.count(states[0]) < 200
    assert chosen.count(states[0]) + chosen.count(states[2]) == len(BROWSERS)


def test_a_browser_whose_server_failed_it_goes_where_the_others_go_that_know_of_its_end() -> None:
    states = three()
    balancer = Balancer(states)
    first = [balancer.choose(b"tag-1", [states[1]], browser=browser) for browser in BROWSERS]
    states[1].health = GONE
    assert [balancer.choose(b"tag-1", (), browser=browser) for browser in BROWSERS] == first


def test_of_more_servers_only_the_browsers_of_one_that_goes_away_move() -> None:
    states = servers_of((f"web-{n}", f"tag-{n}") for n in range(5))
    for state in states[1:]:
        state.health = WELL
    balancer = Balancer(states)
    before = [balancer.choose(b"tag-0", (), browser=browser) for browser in BROWSERS]
    states[3].health = GONE
    after = [balancer.choose(b"tag-0", (), browser=browser) for browser in BROWSERS]
    assert all(new is old for old, new in zip(before, after, strict=True) if old is not states[3])
    assert states[3] in before
    assert states[3] not in after


def test_a_browser_without_a_route_goes_to_the_least_busy() -> None:
    balancer = Balancer(three())
    chosen = [balancer.choose(None, (), browser=b"visitor=1") for _ in range(9)]
    assert [state.index for state in chosen if state] == [0, 1, 2] * 3


def test_ties_go_round() -> None:
    states = three()
    balancer = Balancer(states)
    chosen = [balancer.choose(None, ()) for _ in range(9)]
    assert [state.index for state in chosen if state] == [0, 1, 2] * 3


def test_load_evens_out() -> None:
    states = three()
    balancer = Balancer(states)
    for _ in range(300):
        state = balancer.choose(None, ())
        assert state is not None
        state.in_flight += 1
    assert [state.in_flight for state in states] == [100, 100, 100]


@pytest.mark.parametrize(
    ("checks", "policy", "healths"),
    [
        ([P], (1, 2), [WELL]),
        ([P, P], (1, 2), [WELL, WELL]),
        ([P, P], (2, 2), [GONE, WELL]),
        ([P, U, P], (2, 2), [GONE, GONE, GONE]),
        ([P, S, P, S], (1, 2), [WELL] * 4),
        ([P, S, S], (1, 2), [WELL, WELL, BUSY]),
        ([P, S, S, S, P], (1, 2), [WELL, WELL, BUSY, BUSY, WELL]),
        ([P, P, S, S, P], (2, 2), [GONE, WELL, WELL, BUSY, WELL]),
        ([P, R, R], (1, 2), [WELL, WELL, GONE]),
        ([P, U, S], (1, 2), [WELL, WELL, BUSY]),
        ([P, S, U], (1, 2), [WELL, WELL, GONE]),
        ([P, S, S, R], (1, 2), [WELL, WELL, BUSY, GONE]),
        ([P, R, R, S, S], (1, 2), [WELL, WELL, GONE, GONE, GONE]),
        ([S, S, S], (1, 2), [GONE] * 3),
        ([P, S, N, S], (1, 2), [WELL, WELL, WELL, BUSY]),
        ([P, R, P, R, R, P], (1, 2), [WELL, WELL, WELL, WELL, GONE, WELL]),
        ([P, R], (1, 1), [WELL, GONE]),
    ],
)
def test_health(checks, policy, healths) -> None:  # type: ignore[no-untyped-def]
    state = ServerState(0, "web-1", b"t")
    rise, fall = policy
    before = [GONE, *healths]
    for check, was, expected in zip(checks, before, healths, strict=False):
        assert checked(state, check, HealthPolicy(rise, fall)) == (expected is not was)
        assert state.health is expected


def test_an_ejected_server_comes_back_by_a_check_alone() -> None:
    state = three()[0]
    assert eject(state)
    assert not eject(state)
    assert not heard(state), "bytes of a connection that it still finishes prove nothing"
    assert not stalled(state)
    assert state.health is GONE
    assert checked(state, P, HealthPolicy())
    assert state.health is WELL


def test_a_busy_server_is_well_again_when_anything_is_heard_of_it() -> None:
    state = three()[0]
    assert stalled(state)
    assert not stalled(state)
    assert state.health is BUSY
    assert heard(state)
    assert (state.health, state.failed_checks) == (WELL, 0)
    assert not heard(state)


_IN_WORDS = re.compile(rb'(?:^|;)[ \t]*(?:__Host-)?route=\s*"?([^;"\s]*)')
"""A cookie at the beginning or behind a semicolon, whose name is ours, and its value with or without quotes."""


@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(st.sampled_from([b"route", b"__Host-", b"=", b";", b" ", b"\t", b'"', b"x", b"one", b"two"])).map(b"".join)
)
@example(b"a=b; route=gone; __Host-route=one; route=two")
@example(b"xroute=one;route=route=two")
def test_the_route_is_the_first_tag_of_a_server_of_this_farm(cookies: bytes) -> None:
    known = {b"one", b"two"}
    expected = next((tag for tag in _IN_WORDS.findall(cookies) if tag in known), None)
    assert route_tag_reader("route", known.__contains__)(cookies) == expected
