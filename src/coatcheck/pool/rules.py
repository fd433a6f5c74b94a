"""The rules of leases, written once: one user's state, a command and the time go in; what should happen comes out.

Every store applies these to the state that it keeps, atomically per user. They read no clock, draw no random number
and do no I/O. What must always hold (``tests/pool`` searches for a way to break it):

* a token is in exactly one place: free, leased, or being closed;
* slots in use never exceed ``per_user``, and every slot in somebody's hands has a deadline;
* nothing lasts longer than it may, whatever the store's clock was when it was written down;
* no lease is granted past ``max_uses`` or expiry, nor to a caller who came after one that still waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from coatcheck.pool.commands import (
    Acquire,
    Add,
    CleanUp,
    Command,
    CommandOutcome,
    Done,
    Extend,
    Granted,
    Leave,
    LoginDone,
    LoginEnded,
    LogoutEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    Parting,
    QueueFull,
    Release,
    Remove,
    Reply,
    Reset,
    TakeIdle,
    Waiting,
)
from coatcheck.pool.state import FAR, Closing, Holding, Policy, Ticket, Token, UserState

REFRESHES_PER_TICKET_LIFE: Final = 3
"""A waiting caller shows up so often within the life of its ticket, so that one missed wake-up costs little."""

Partings = list[Parting]


def apply(state: UserState, policy: Policy, now: float, command: Command) -> CommandOutcome:
    """Change ``state`` as ``command`` asks, and say what came of it."""
    partings: Partings = []
    clamp(state, policy, now)
    reply = _RULES[type(command)](state, policy, now, command, partings)
    return CommandOutcome(reply, tuple(partings))


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
    limited_s = _limited_s(state, policy, now)
    return min(state.next_deadline, now + limited_s) if limited_s else state.next_deadline


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
            dropped += _lose(state, policy, now, fence, partings)
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


def _lose(state: UserState, policy: Policy, now: float, fence: int, partings: Partings) -> int:
    holding = state.leases.pop(fence)
    state.counters.lost += 1
    if holding.token is None:
        state.counters.not_leases += 1
        return 0  # a login that took too long; what it brings is logged out when it comes
    drop(state, policy, now, holding.token, partings)
    return 1


def _current(state: UserState, now: float, fence: int) -> Holding | None:
    """The lease ``fence`` if it is still its borrower's: before the deadline to the very moment."""
    holding = state.leases.get(fence)
    return None if holding is None or now >= holding.deadline else holding


# -- the fast path: what _acquire and _release come to when nobody waits and nothing is overdue


def take_quickly(state: UserState, policy: Policy, now: float) -> tuple[int, float, Token] | None:
    """Lease the token that was used last, or change nothing and return ``None``: then :class:`Acquire` decides."""
    free = state.free
    if not free or state.tickets or now >= state.next_deadline:
        return None
    token = free[-1]
    if now < token.used_at:
        return None  # the clock went back
    if token.uses >= policy.max_uses or now + policy.min_remaining_s >= token.expires_at:
        return None
    del free[-1]
    token.uses += 1
    deadline = now + policy.lease_s
    state.fence = fence = state.fence + 1
    state.leases[fence] = Holding(token, deadline, policy.lease_s)
    if deadline < state.next_deadline:
        state.next_deadline = deadline
    return fence, deadline, token


def give_back_quickly(state: UserState, policy: Policy, now: float, fence: int, value: str | None) -> bool:
    """Free a lease whose token lives on, or change nothing and return ``False``: then :class:`Release` decides."""
    if state.tickets:
        return False
    holding = state.leases.get(fence)
    if holding is None or now >= holding.deadline:
        return False
    token = holding.token
    if token is None or token.uses >= policy.max_uses or token.span_s != FAR:
        return False
    expires_at = now + token.life_s
    if now + policy.min_remaining_s >= expires_at:
        return False
    del state.leases[fence]
    if value is not None:
        token.value = value
    token.expires_at = expires_at
    token.used_at = now
    state.free.append(token)
    return True


# -- commands


def _acquire(state: UserState, policy: Policy, now: float, command: Acquire, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    place = _place(state, command.ticket)
    logins = login_openings(state, policy, now)
    if place < len(state.free):
        _unqueue(state, command.ticket)
        return take(state, policy, now)
    if command.may_login and place < len(state.free) + logins:
        _unqueue(state, command.ticket)
        if policy.login_every_s:
            state.rate_at = max(state.rate_at, now) + policy.login_every_s
            state.rate_s = policy.login_every_s * policy.login_burst
        return MustLogIn(hold(state, None, now, policy.login_timeout_s))
    limited_s = _limited_s(state, policy, now)
    if not command.may_wait:
        return NoToken(limited_s)
    return _queue(state, policy, now, command.ticket, limited_s)


def _place(state: UserState, number: int) -> int:
    for place, ticket in enumerate(state.tickets):
        if ticket.number == number:
            return place
    return len(state.tickets)


def _unqueue(state: UserState, number: int) -> None:
    if number:
        state.tickets = [ticket for ticket in state.tickets if ticket.number != number]


def take(state: UserState, policy: Policy, now: float) -> Granted:
    """Lease the token that was used last: the others age, and expire first."""
    token = state.free.pop()
    token.uses += 1
    fence = hold(state, token, now, policy.lease_s)
    return Granted(fence, token.value, policy.lease_s, token.uses)


def _limited_s(state: UserState, policy: Policy, now: float) -> float:
    if state.slots_used() >= policy.per_user:
        return 0.0
    return max(0.0, login_allowed_at(state, policy) - now)


def _queue(state: UserState, policy: Policy, now: float, number: int, limited_s: float) -> Reply:
    place = _place(state, number)
    if place == len(state.tickets):
        if place >= policy.max_waiting:
            return QueueFull()
        # A ticket that was lost (its caller was away for too long) starts again at the end.
        number = state.next_ticket
        state.next_ticket += 1
        state.tickets.append(Ticket(number, FAR))
    state.tickets[place].alive_until = now + policy.ticket_life_s
    again_s = min(changes_at(state, policy, now) - now, policy.ticket_life_s / REFRESHES_PER_TICKET_LIFE)
    hopeless = limited_s > 0 and not state.free and not state.leases and not state.closing
    return Waiting(number, max(0.0, again_s), limited_s, hopeless)


def _leave(state: UserState, policy: Policy, now: float, command: Leave, partings: Partings) -> Reply:
    _unqueue(state, command.ticket)
    state.counters.timeouts += command.timed_out
    return Done()


def _login_done(state: UserState, policy: Policy, now: float, command: LoginDone, partings: Partings) -> Reply:
    holding = _current(state, now, command.fence)
    if holding is None or holding.token is not None:
        return Lost()
    state.counters.logins += 1
    state.failures = 0
    state.retry_at = -FAR
    del state.leases[command.fence]
    hold(state, _fresh(command, now, command.fence), now, policy.lease_s, command.fence)
    return Granted(command.fence, command.value, policy.lease_s)


def _fresh(command: LoginDone | Add, now: float, token_id: int) -> Token:
    span_s = command.span_s if isinstance(command, LoginDone) else FAR
    dies_at = now + span_s
    expires_at = min(now + command.life_s, dies_at)
    return Token(token_id, command.value, command.life_s, expires_at, dies_at, span_s, used_at=now)


def _login_ended(state: UserState, policy: Policy, now: float, command: LoginEnded, partings: Partings) -> Reply:
    holding = state.leases.get(command.fence)
    if holding is not None and holding.token is None:
        del state.leases[command.fence]
        state.counters.not_leases += 1
    if command.failed:
        state.counters.login_failures += 1
        state.failures = min(state.failures + 1, 32)
        state.retry_s = min(policy.backoff_first_s * 2.0 ** (state.failures - 1), policy.backoff_max_s)
        state.retry_at = now + state.retry_s
    return Done() if holding is not None else Lost()


def _release(state: UserState, policy: Policy, now: float, command: Release, partings: Partings) -> Reply:
    holding = _current(state, now, command.fence)
    if holding is None or holding.token is None:
        sweep(state, policy, now, partings)
        return Lost()
    del state.leases[command.fence]
    token = holding.token
    if command.value is not None:
        token.value = command.value
        if command.span_s is not None:
            token.span_s = command.span_s
        token.dies_at = now + token.span_s
    if command.keep:
        give_back(state, policy, now, token, partings)
    else:
        drop(state, policy, now, token, partings, sign_out=command.sign_out)
    return Done()


def _extend(state: UserState, policy: Policy, now: float, command: Extend, partings: Partings) -> Reply:
    holding = _current(state, now, command.fence)
    if holding is None or holding.token is None:
        return Lost()
    if command.renew:
        holding.deadline, holding.length_s = now + policy.lease_s, policy.lease_s
    return Granted(command.fence, holding.token.value, holding.deadline - now, holding.token.uses)


def _closed(state: UserState, policy: Policy, now: float, command: LogoutEnded, partings: Partings) -> Reply:
    return Lost() if state.closing.pop(command.fence, None) is None else Done()


def _add(state: UserState, policy: Policy, now: float, command: Add, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    if state.slots_used() >= policy.per_user:
        return NoSlot()
    state.fence += 1
    state.counters.not_leases += 1
    token = _fresh(command, now, state.fence)
    give_back(state, policy, now, token, partings)
    return Done()


def _take_idle(state: UserState, policy: Policy, now: float, command: TakeIdle, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    # Whoever waits comes first, and uses the token anyway.
    if state.tickets or not state.free or now - state.free[0].used_at < command.idle_s:
        return NoToken()
    token = state.free.pop(0)
    return Granted(hold(state, token, now, policy.lease_s), token.value, policy.lease_s, token.uses)


def _remove(state: UserState, policy: Policy, now: float, command: Remove, partings: Partings) -> Reply:
    def chosen(token: Token | None) -> bool:
        return token is not None and command.token_id in (None, token.token_id)

    fences = [fence for fence, holding in state.leases.items() if chosen(holding.token)]
    count = sum(_lose(state, policy, now, fence, partings) for fence in fences)
    removed = [token for token in state.free if chosen(token)]
    state.free = [token for token in state.free if not chosen(token)]
    for token in removed:
        drop(state, policy, now, token, partings)
    return Done(count + len(removed))


def _reset(state: UserState, policy: Policy, now: float, command: Reset, partings: Partings) -> Reply:
    """Those who wait keep their places; the upstream may still count sessions that are forgotten here."""
    state.closing.clear()
    count = sum(_lose(state, policy, now, fence, partings) for fence in list(state.leases))
    for token in state.free:
        drop(state, policy, now, token, partings)
    count += len(state.free)
    state.free = []
    state.failures = 0
    state.retry_at = state.rate_at = -FAR
    sweep(state, policy, now, partings)
    return Done(count)


def _clean_up(state: UserState, policy: Policy, now: float, command: CleanUp, partings: Partings) -> Reply:
    return Done(sweep(state, policy, now, partings))


_Rule = Callable[[UserState, Policy, float, Any, Partings], Reply]
_RULES: Final[dict[type, _Rule]] = {
    Acquire: _acquire,
    Leave: _leave,
    LoginDone: _login_done,
    LoginEnded: _login_ended,
    Release: _release,
    Extend: _extend,
    LogoutEnded: _closed,
    Add: _add,
    TakeIdle: _take_idle,
    Remove: _remove,
    Reset: _reset,
    CleanUp: _clean_up,
}
