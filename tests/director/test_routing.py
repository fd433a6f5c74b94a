"""The rules: which server, which are fit, what may be sent again."""

from __future__ import annotations

import itertools

import pytest

from coatcheck.director.routing import (
    Attempt,
    Balancer,
    Check,
    HealthPolicy,
    ServerState,
    Verdict,
    checked,
    eject,
    may_send_again,
    servers_of,
)

P, R, U, S, N = Check.PASSED, Check.REFUSED, Check.UNFIT, Check.SILENT, Check.INCONCLUSIVE


def three(**changes: dict[str, object]) -> list[ServerState]:
    states = servers_of((f"web-{n}", f"tag-{n}") for n in range(3))
    for state in states:
        state.healthy = True
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
        (b"tag-1", (), {"s1": {"healthy": False}}, 0),
        (b"tag-1", (), {"s1": {"draining": True}}, 0),
        (b"unknown", (), {"s0": {"in_flight": 1}}, 1),
        (None, (), {"s0": {"in_flight": 1}, "s1": {"in_flight": 1}}, 2),
        (None, (2,), {"s0": {"in_flight": 1}, "s1": {"in_flight": 2}}, 0),
        (None, (), {"s0": {"healthy": False}, "s1": {"draining": True}}, 2),
        (None, (0, 1, 2), {}, None),
        (b"tag-0", (0, 1), {"s2": {"draining": True}}, None),
        (None, (), {"s0": {"healthy": False}, "s1": {"healthy": False}, "s2": {"healthy": False}}, None),
    ],
)
def test_the_choice(tag, tried, changes, expected) -> None:  # type: ignore[no-untyped-def]
    states = three(**changes)
    chosen = Balancer(states).choose(tag, [states[n] for n in tried])
    assert chosen is (None if expected is None else states[expected])


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
    ("checks", "policy", "verdicts"),
    [
        ([P], (1, 2), [Verdict.ADMITTED]),
        ([P, P], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED]),
        ([P, P], (2, 2), [Verdict.UNCHANGED, Verdict.ADMITTED]),
        ([P, U, P], (2, 2), [Verdict.UNCHANGED] * 3),
        ([P, S, P, S], (1, 2), [Verdict.ADMITTED] + [Verdict.UNCHANGED] * 3),
        ([P, S, S], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.ABANDONED]),
        ([P, S, S, S], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.ABANDONED, Verdict.UNCHANGED]),
        ([P, R, R], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.EJECTED]),
        ([P, U, S], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.ABANDONED]),
        ([P, S, N, S], (1, 2), [Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.UNCHANGED, Verdict.ABANDONED]),
        ([P, R, P, R, R, P], (1, 2), [
            Verdict.ADMITTED, Verdict.UNCHANGED, Verdict.UNCHANGED, Verdict.UNCHANGED, Verdict.EJECTED,
            Verdict.ADMITTED]),
        ([P, R], (1, 1), [Verdict.ADMITTED, Verdict.EJECTED]),
    ],
)  # fmt: skip
def test_health(checks, policy, verdicts) -> None:  # type: ignore[no-untyped-def]
    state = ServerState(0, "web-1", b"t")
    rise, fall = policy
    assert [checked(state, check, HealthPolicy(rise, fall)) for check in checks] == verdicts


def test_an_ejected_server_comes_back_by_a_check_and_silence_still_frees_what_waits() -> None:
    state = three()[0]
    assert eject(state)
    assert not eject(state)
    assert (state.healthy, state.suspect) == (False, True)
    assert [checked(state, S, HealthPolicy()) for _ in range(2)] == [Verdict.UNCHANGED, Verdict.ABANDONED]
    assert state.silent
    assert checked(state, P, HealthPolicy()) is Verdict.ADMITTED
    assert (state.healthy, state.suspect, state.silent) == (True, False, False)


def test_what_may_be_sent_again_every_case() -> None:
    methods = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE", b"POST", b"PATCH", b"get", b"BREW"]
    yes = no = 0
    for method, sent, kept, begun, tries in itertools.product(
        methods, (False, True), (False, True), (False, True), (0, 1, 2, 3)
    ):
        allowed = may_send_again(Attempt(method, sent, kept, begun, tries), max_tries=3)
        if begun or not kept:
            assert not allowed
        elif not sent:
            assert allowed
        else:
            assert allowed == (method in methods[:6] and tries < 3)
        yes, no = yes + allowed, no + (not allowed)
    assert (yes, no) == (58, 262)
