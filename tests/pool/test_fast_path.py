"""The fast path does exactly what the commands do, or nothing."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from coatcheck.pool import rules
from coatcheck.pool.commands import Acquire, Both, Done, Granted, Release, Then
from coatcheck.pool.state import FAR, Holding, Policy, Ticket, Token, UserState

NOW = 1_000.0
WHOSE = st.sampled_from([b"", b"r" * 16, b"o" * 16])
SECONDS = st.sampled_from([NOW - 1, NOW, NOW + 0.5, NOW + 1, NOW + 50, FAR])


@st.composite
def states(draw: st.DrawFn) -> tuple[UserState, Policy]:
    def token(number: int) -> Token:
        expires_at, span_s = draw(SECONDS), draw(st.sampled_from([FAR, 5.0]))
        dies_at = NOW + span_s
        return Token(
            number,
            f"t{number}",
            draw(st.sampled_from([0.5, 20.0])),
            expires_at,
            dies_at,
            span_s,
            draw(st.integers(1, 4)),
            credentials=draw(WHOSE),
        )

    state = UserState(500, 500)
    state.free = [token(number) for number in range(draw(st.integers(0, 2)))]
    state.leases = {400: Holding(token(9), draw(SECONDS))}
    state.next_deadline = draw(st.sampled_from([NOW - 1, state.leases[400].deadline]))
    state.next_deadline = min(state.next_deadline, state.leases[400].deadline)
    state.tickets = [Ticket(1, FAR)] if draw(st.integers(0, 4)) == 0 else []
    policy = Policy(max_uses=draw(st.integers(2, 4)), min_remaining_s=draw(st.sampled_from([0.0, 1.0])))
    return state, policy


@given(states(), WHOSE)
def test_taking(given_state: tuple[UserState, Policy], whose: bytes) -> None:
    state, policy = given_state
    before, slow = copy.deepcopy(state), copy.deepcopy(state)
    credentials = (whose,) if whose else ()
    taken = rules.take_quickly(state, policy, NOW, credentials)
    if taken is None:
        assert state == before
        return
    assert taken[2].credentials == whose
    outcome = rules.apply(slow, policy, NOW, Acquire(credentials=credentials))
    assert type(outcome.reply) is Granted
    assert taken[0] == outcome.reply.fence
    # The slow way also sweeps other spent tokens; where it found none, the states are the same.
    if not slow.counters.drops:
        assert state == slow


@given(states(), st.sampled_from([None, "refreshed"]))
def test_giving_back(given_state: tuple[UserState, Policy], value: str | None) -> None:
    state, policy = given_state
    before, slow = copy.deepcopy(state), copy.deepcopy(state)
    if not rules.give_back_quickly(state, policy, NOW, 400, value):
        assert state == before
        return
    assert rules.apply(slow, policy, NOW, Release(400, value)).reply == Done()
    assert state == slow


@given(states(), st.sampled_from([None, "refreshed"]), st.integers(0, 2))
def test_passing_on(given_state: tuple[UserState, Policy], value: str | None, more: int) -> None:
    state, policy = given_state
    held = state.leases[400].token
    assert held is not None
    mine = held.credentials
    if state.tickets:
        state.tickets[0].credentials = mine
    before, slow = copy.deepcopy(state), copy.deepcopy(state)
    taken = rules.pass_on_quickly(state, policy, NOW, 400, value, 1, more)
    if taken is None:
        assert state == before
        return
    acquire = Acquire(1, credentials=(mine,) if mine else (), more=more)
    reply = rules.apply(slow, policy, NOW, Then(Release(400, value), acquire)).reply
    assert type(reply) is Both
    assert type(reply.second) is Granted
    assert (taken[0], taken[2].value, taken[2].uses) == (reply.second.fence, reply.second.value, reply.second.uses)
    if not slow.counters.drops:
        assert state == slow
