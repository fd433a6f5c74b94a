"""The tokens and slots of one user: what their state says, and how they change hands.

The commands of :mod:`coatcheck.pool.rules` are made of these; they have the same promises.
"""

from __future__ import annotations

from coatcheck.pool.commands import Parting
from coatcheck.pool.state import FAR, Closing, Holding, Policy, Token, UserState

Partings = list[Parting]


def clamp(state: UserState, policy: Policy, now: float) -> None:
    """Let no stored moment be farther away than its own length: the clock was ahead when it was written down.

    Where the clock only went on, this changes nothing. The lengths are those of whoever wrote the moment, for other
    processes may have another policy.
    """
    state.retry_at = min(state.retry_at, now + state.retry_s)
    state.rate_at = min(state.rate_at, now + state.rate_s)
    slots: list[Holding | Closing] = [*state.leases.values(), *state.closing.values()]
    for slot in slots:
        if slot.deadline > now + slot.length_s:
            slot.deadline = now + slot.length_s
            state.next_deadline = min(state.next_deadline, slot.deadline)
    for token in state.free:
        _clamp_token(token, now)
    for holding in state.leases.values():
        if holding.token is not None:
            _clamp_token(holding.token, now)
    for ticket in state.tickets:
        ticket.alive_until = min(ticket.alive_until, now + policy.ticket_life_s)


def _clamp_token(token: Token, now: float) -> None:
    if token.used_at > now:  # it was used under a clock that is ahead of this one
        token.used_at = now
        token.dies_at = min(token.dies_at, now + token.span_s)
        token.expires_at = min(token.expires_at, now + token.life_s, token.dies_at)


# -- what the state says


def login_allowed_at(state: UserState, policy: Policy) -> float:
    """When the next login may start: after the back-off of failed ones, and within the rate (GCRA)."""
    burst_s = policy.login_every_s * (policy.login_burst - 1)
    return max(state.retry_at, state.rate_at - burst_s if policy.login_every_s else -FAR)


def login_openings(state: UserState, policy: Policy, now: float) -> int:
    """How many callers could start a login now. After a failure, one tries at a time."""
    slots = policy.per_user - state.slots_used()
    if slots <= 0 or now < login_allowed_at(state, policy):
        return 0
    if state.failures:
        return 0 if any(holding.token is None for holding in state.leases.values()) else 1
    return slots


def turns(state: UserState, policy: Policy, now: float) -> list[int]:
    """The tickets whose turn it is, first come, first served."""
    if not state.tickets:
        return []
    count = len(state.free) + login_openings(state, policy, now)
    return [ticket.number for ticket in state.tickets[:count]]


def changes_at(state: UserState, policy: Policy, now: float) -> float:
    """When a caller who waits may be served though nobody gives anything back: an overdue slot, an allowed login."""
    limited_s = login_wait_s(state, policy, now)
    return min(state.next_deadline, now + limited_s) if limited_s else state.next_deadline


def login_wait_s(state: UserState, policy: Policy, now: float) -> float:
    """How long the next login has to wait though a slot is free; 0 if one may start, or if no slot is."""
    if state.slots_used() >= policy.per_user:
        return 0.0
    return max(0.0, login_allowed_at(state, policy) - now)


# -- tokens and slots


def is_spent(token: Token, policy: Policy, now: float) -> bool:
    """Whether the token may not be handed out again: used up, expired, or too close to expiry."""
    return token.uses >= policy.max_uses or now + policy.min_remaining_s >= token.expires_at


def hold(state: UserState, token: Token | None, now: float, length_s: float, fence: int = 0) -> int:
    """Put a token (or a login) into somebody's hands for so long; returns the fencing number."""
    deadline = now + length_s
    if not fence:
        state.fence = fence = state.fence + 1
    state.leases[fence] = Holding(token, deadline, length_s)
    if deadline < state.next_deadline:
        state.next_deadline = deadline
    return fence


def give_back(state: UserState, policy: Policy, now: float, token: Token, partings: Partings) -> None:
    """After a use: the token lives on, and is the next to be taken, unless it is spent."""
    token.used_at = now
    token.expires_at = min(now + token.life_s, token.dies_at)
    if is_spent(token, policy, now):
        drop(state, policy, now, token, partings)
    else:
        state.free.append(token)


def drop(
    state: UserState, policy: Policy, now: float, token: Token, partings: Partings, *, sign_out: bool = True
) -> None:
    """Take a token out of use. While the upstream may still count its session, the slot stays taken."""
    state.counters.drops += 1
    if sign_out and policy.signs_out:
        state.fence += 1
        state.counters.not_leases += 1
        deadline = now + policy.logout_timeout_s
        state.closing[state.fence] = Closing(token.value, deadline, policy.logout_timeout_s)
        state.next_deadline = min(state.next_deadline, deadline)
        partings.append(Parting(state.fence, token.value))


def sweep(state: UserState, policy: Policy, now: float, partings: Partings) -> int:
    """Recover what is overdue and drop what is spent; returns how many tokens were dropped.

    A lease past its deadline is dropped, never freed: its borrower may still be using the token.
    """
    dropped = 0
    if now >= state.next_deadline:
        for fence in [fence for fence, closing in state.closing.items() if now >= closing.deadline]:
            del state.closing[fence]
        for fence in [fence for fence, holding in state.leases.items() if now >= holding.deadline]:
            dropped += lose(state, policy, now, fence, partings)
        deadlines = [holding.deadline for holding in state.leases.values()]
        state.next_deadline = min([*deadlines, *(closing.deadline for closing in state.closing.values())], default=FAR)
    spent = [token for token in state.free if is_spent(token, policy, now)]
    if spent:
        state.free = [token for token in state.free if not is_spent(token, policy, now)]
        for token in spent:
            drop(state, policy, now, token, partings)
    if state.tickets and policy.ticket_life_s < FAR:
        state.tickets = [ticket for ticket in state.tickets if now < ticket.alive_until]
    return dropped + len(spent)


def is_overdue(state: UserState, policy: Policy, now: float) -> bool:
    """Whether a sweep would find something."""
    return (
        now >= state.next_deadline
        or any(is_spent(token, policy, now) for token in state.free)
        or any(now >= ticket.alive_until for ticket in state.tickets)
    )


def lose(state: UserState, policy: Policy, now: float, fence: int, partings: Partings) -> int:
    holding = state.leases.pop(fence)
    state.counters.lost += 1
    if holding.token is None:
        state.counters.not_leases += 1
        return 0  # a login that took too long; what it brings is logged out when it comes
    drop(state, policy, now, holding.token, partings)
    return 1


def current(state: UserState, now: float, fence: int) -> Holding | None:
    """The lease ``fence`` if it is still its borrower's: before the deadline to the very moment."""
    holding = state.leases.get(fence)
    return None if holding is None or now >= holding.deadline else holding
