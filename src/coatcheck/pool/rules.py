"""The rules of leases, written once: one user's state, a command and the time go in; what should happen comes out.

Every store applies these to the state that it keeps, atomically per user. They read no clock, draw no random number
and do no I/O. What must always hold (``tests/pool`` searches for a way to break it):

* a token is in exactly one place: free, leased, or being closed;
* slots in use never exceed ``per_user``, and every slot in somebody's hands has a deadline;
* nothing lasts longer than it may, whatever the store's clock was when it was written down;
* no lease is granted past ``max_uses`` or expiry, nor to a caller who came after one that could have had it;
* a token is lent only with the credentials that opened it.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest as same
from typing import Any, Final

import msgspec

from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    CleanUp,
    Command,
    CommandOutcome,
    Done,
    Extend,
    Granted,
    Leave,
    LogInAhead,
    LoginDone,
    LoginEnded,
    LogoutEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    NotTried,
    QueueFull,
    RefuseToken,
    Release,
    Remove,
    Reply,
    Reset,
    TakeIdle,
    Then,
    Waiting,
)
from coatcheck.pool.refusals import counted, is_believed
from coatcheck.pool.slots import (
    ENDED_S,
    Claim,
    Partings,
    changes_at,
    claims,
    clamp,
    current,
    doom,
    drop,
    give_back,
    hold,
    idle_of_others,
    is_refused,
    known_as,
    last_of,
    login_wait_s,
    lose,
    may_log_in,
    note_failure,
    note_success,
    owners,
    sweep,
)
from coatcheck.pool.state import FAR, Holding, Policy, Ticket, Token, UserState

REFRESHES_PER_TICKET_LIFE: Final = 3
"""A waiting caller shows up so often within the life of its ticket, so that one missed wake-up costs little."""


def apply(state: UserState, policy: Policy, now: float, command: Command) -> CommandOutcome:
    """Change ``state`` as ``command`` asks, and say what came of it."""
    partings = Partings(audited=policy.audited)
    clamp(state, policy, now)
    reply = _RULES[type(command)](state, policy, now, command, partings)
    return CommandOutcome(reply, tuple(partings), tuple(partings.notes))


# -- the fast path: what _acquire and _release come to when nobody waits and nothing is overdue. A signal handler that
# borrows may run after any call of a function, so what is changed here is looked at, and changed, behind the last one.


def take_quickly(
    state: UserState, policy: Policy, now: float, credentials: tuple[bytes, ...] = ()
) -> tuple[int, float, Token] | None:
    """Lease the token that was used last, or change nothing and return ``None``: then :class:`Acquire` decides."""
    free = state.free
    if not free or state.tickets or now >= state.next_deadline:
        return None
    token = free[-1]
    if (token.credentials or credentials) and not (credentials and same(token.credentials, credentials[0])):
        return None
    if now < token.used_at:
        return None  # the clock went back
    if token.uses >= policy.max_uses or now + policy.min_remaining_s >= token.expires_at:
        return None
    deadline = now + policy.lease_s
    holding = Holding(token, deadline, policy.lease_s)
    if not free or free[-1] is not token:
        return None
    del free[-1]
    token.uses += 1
    state.fence = fence = state.fence + 1
    state.leases[fence] = holding
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


def pass_on_quickly(
    state: UserState, policy: Policy, now: float, fence: int, value: str | None, ticket: int, more: int
) -> tuple[int, float, Token] | None:
    """Give a lease back and lease its token to the caller who holds the only ticket, or change nothing: ``None``.

    It comes to :class:`Release`, then :class:`Acquire` with ``ticket`` and ``more``, by the same credentials.
    """
    tickets = state.tickets
    if len(tickets) != 1 or tickets[0].number != ticket or now >= state.next_deadline:
        return None
    holding = state.leases.get(fence)
    if holding is None:
        return None
    token = holding.token
    if token is None or token.uses >= policy.max_uses or token.span_s != FAR or now < token.used_at:
        return None
    if now + policy.min_remaining_s >= now + token.life_s or not same(token.credentials, tickets[0].credentials):
        return None
    deadline = now + policy.lease_s
    passed_on = Holding(token, deadline, policy.lease_s)
    if state.tickets is not tickets or fence not in state.leases:
        return None
    del state.leases[fence]
    if value is not None:
        token.value = value
    token.expires_at = now + token.life_s
    token.used_at = now
    token.uses += 1
    if more:
        tickets[0].callers = more
    else:
        state.tickets = []
    state.fence = fence = state.fence + 1
    state.leases[fence] = passed_on
    if deadline < state.next_deadline:
        state.next_deadline = deadline
    return fence, deadline, token


# -- commands


def _acquire(state: UserState, policy: Policy, now: float, command: Acquire, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    mine = known_as(state, command.credentials)
    claim, other = _claim(state, policy, now, command, mine)
    if claim is Claim.TOKEN:
        _serve(state, policy, now, command)
        return take(state, policy, now, mine)
    if claim is Claim.REFUSED and command.may_login:
        _unqueue(state, command.ticket)
        return NotTried()
    if claim is Claim.MAKE_ROOM and command.may_login and other is not None:
        state.free.remove(other)
        drop(state, policy, now, other, partings, "room")
        if state.slots_used() < policy.per_user:
            claim = Claim.LOGIN  # else it comes when the other is logged out
    if claim is Claim.LOGIN and command.may_login:
        _serve(state, policy, now, command)
        return _begin_login(state, policy, now, mine)
    limited_s = login_wait_s(state, policy, now, mine)
    if not command.may_wait:
        return NoToken(limited_s)
    return _queue(state, policy, now, command, mine, limited_s)


def _begin_login(state: UserState, policy: Policy, now: float, mine: bytes) -> MustLogIn:
    if policy.login_every_s:
        state.rate_at = max(state.rate_at, now) + policy.login_every_s
        state.rate_s = policy.login_every_s * policy.login_burst
    return MustLogIn(hold(state, None, now, policy.login_timeout_s, credentials=mine))


def _log_in_ahead(state: UserState, policy: Policy, now: float, command: LogInAhead, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    mine = known_as(state, command.credentials)
    enough = _count_of(mine, owners(state, lent=not command.idle, coming=True)) >= command.sessions
    if enough or state.tickets or state.slots_used() >= policy.per_user:
        return NoToken()
    if is_refused(state, now, mine):
        return NotTried()
    logging_in = [holding.credentials for holding in state.leases.values() if holding.token is None]
    if not may_log_in(state, policy, now, mine, logging_in):
        return NoToken(login_wait_s(state, policy, now, mine))
    return _begin_login(state, policy, now, mine)


def _claim(
    state: UserState, policy: Policy, now: float, command: Acquire, mine: bytes
) -> tuple[Claim | None, Token | None]:
    """What the caller with this ticket, or without one behind all who wait, may have."""
    callers = state.tickets
    place = _place(state, command.ticket)
    if place == len(callers):
        caller = Ticket(0, FAR, mine)
        callers = [*callers, caller]
    else:
        caller = callers[place]
        caller.credentials = mine
    if command.ahead:
        callers = [caller, *(other for other in callers if other is not caller)]
    for number, claim, token in claims(state, policy, now, callers):
        if number == caller.number:
            return claim, token
    return None, None


def _place(state: UserState, number: int) -> int:
    for place, ticket in enumerate(state.tickets):
        if ticket.number == number:
            return place
    return len(state.tickets)


def _unqueue(state: UserState, number: int) -> None:
    if number:
        state.tickets = [ticket for ticket in state.tickets if ticket.number != number]


def _serve(state: UserState, policy: Policy, now: float, command: Acquire) -> None:
    """The ticket has had its turn: it goes, or to the end of the queue, for those who wait behind the same caller."""
    place = _place(state, command.ticket)
    if not command.more or place == len(state.tickets):
        _unqueue(state, command.ticket)
        return
    ticket = state.tickets[place]
    ticket.callers = command.more
    ticket.alive_until = now + policy.ticket_life_s
    if not command.ahead:
        state.tickets.append(state.tickets.pop(place))


def take(state: UserState, policy: Policy, now: float, mine: bytes) -> Granted:
    """Lease the token of these credentials that was used last: the others age, and expire first."""
    token = last_of(state.free, mine)
    assert token is not None, "there is one for whom it is claimed"
    state.free.remove(token)
    token.uses += 1
    fence = hold(state, token, now, policy.lease_s)
    return Granted(fence, token.value, policy.lease_s, token.uses, idle_s=now - token.used_at, token_id=token.token_id)


def _queue(state: UserState, policy: Policy, now: float, command: Acquire, mine: bytes, limited_s: float) -> Reply:
    place, number = _place(state, command.ticket), command.ticket
    if place == len(state.tickets):
        # A ticket that was lost (its caller was away for too long) starts again at the end. It had been let in before.
        if not number and sum(ticket.callers for ticket in state.tickets) >= policy.max_waiting:
            return QueueFull()
        number = state.next_ticket
        state.next_ticket += 1
        state.tickets.append(Ticket(number, FAR, mine))
    ticket = state.tickets[place]
    ticket.alive_until = now + policy.ticket_life_s
    ticket.callers = 1 + command.more
    again_s = min(changes_at(state, policy, now, mine) - now, policy.ticket_life_s / REFRESHES_PER_TICKET_LIFE)
    hopeless = limited_s > 0 and not state.closing and not _count_of(mine, owners(state, coming=True))
    return Waiting(number, max(0.0, again_s), limited_s, hopeless)


def _count_of(mine: bytes, credentials: list[bytes]) -> int:
    return sum(same(mine, other) for other in credentials)


def _leave(state: UserState, policy: Policy, now: float, command: Leave, partings: Partings) -> Reply:
    _unqueue(state, command.ticket)
    state.counters.timeouts += command.timed_out
    return Done()


def _login_done(state: UserState, policy: Policy, now: float, command: LoginDone, partings: Partings) -> Reply:
    holding = current(state, now, command.fence)
    if holding is None or holding.token is not None:
        return Lost()
    state.counters.logins += 1
    note_success(state, holding.credentials)
    del state.leases[command.fence]
    token = _fresh(command, now, command.fence, holding.credentials)
    hold(state, token, now, policy.lease_s, command.fence)
    partings.note("opened", token)
    return Granted(command.fence, command.value, policy.lease_s, token_id=command.fence)


def _fresh(command: LoginDone | Add, now: float, token_id: int, credentials: bytes) -> Token:
    span_s = command.span_s if isinstance(command, LoginDone) else FAR
    dies_at = now + span_s
    expires_at = min(now + command.life_s, dies_at)
    life_s = command.life_s
    token = Token(token_id, command.value, life_s, expires_at, dies_at, span_s, used_at=now, opened_at=now)
    token.credentials = credentials
    return token


def _login_ended(state: UserState, policy: Policy, now: float, command: LoginEnded, partings: Partings) -> Reply:
    holding = state.leases.get(command.fence)
    mine = known_as(state, command.credentials)
    if holding is not None and holding.token is None:
        mine = holding.credentials
        del state.leases[command.fence]
        state.counters.not_leases += 1
        state.rate_at -= policy.login_every_s  # the rate is for logins that work; failed ones have their back-off
    if command.failed:
        state.counters.login_failures += 1
        note_failure(state, policy, now, mine, refused=command.refused)
    if holding is None:
        return Lost()
    return Done(_count_of(mine, owners(state))) if command.failed else Done()


def _release(state: UserState, policy: Policy, now: float, command: Release, partings: Partings) -> Reply:
    holding = current(state, now, command.fence)
    if holding is None or holding.token is None:
        sweep(state, policy, now, partings)
        return Lost()
    del state.leases[command.fence]
    token = holding.token
    if command.value is not None:
        token.value = command.value
        if token.span_s != ENDED_S:
            if command.span_s is not None:
                token.span_s = command.span_s
            token.dies_at = now + token.span_s
    token.uses -= command.unused
    if command.keep:
        if not command.unused:
            partings.note("returned", token, command.fence)
        return Done(int(give_back(state, policy, now, token, partings)))
    why = "given_up" if command.sign_out else "dead"
    drop(state, policy, now, token, partings, why, lease=command.fence, sign_out=command.sign_out)
    return Done(0)


def _extend(state: UserState, policy: Policy, now: float, command: Extend, partings: Partings) -> Reply:
    holding = current(state, now, command.fence)
    if holding is None or holding.token is None:
        return Lost()
    if command.renew:
        holding.deadline, holding.length_s = now + policy.lease_s, policy.lease_s
    token = holding.token
    return Granted(command.fence, token.value, holding.deadline - now, token.uses, token_id=token.token_id)


def _refuse(state: UserState, policy: Policy, now: float, command: RefuseToken, partings: Partings) -> Reply:
    holding = current(state, now, command.fence)
    if holding is None or holding.token is None:
        return Lost()
    token, age_s = holding.token, now - holding.token.opened_at
    is_newer = token.opened_at >= state.refused_at
    if command.fence == token.token_id:  # opened for this very call
        if is_newer and not state.refusals:
            state.refusals, state.refused_at = 1, token.opened_at
        partings.note("kept", token, command.fence)
        return Done(0)
    if is_newer:
        if not is_believed(state.refusals, age_s):
            partings.note("kept", token, command.fence)
            return Done(0)
        state.refusals, state.refused_at = counted(state.refusals, age_s), now
    partings.note("refused", token, command.fence)
    return Done()


def _closed(state: UserState, policy: Policy, now: float, command: LogoutEnded, partings: Partings) -> Reply:
    return Lost() if state.closing.pop(command.fence, None) is None else Done()


def _add(state: UserState, policy: Policy, now: float, command: Add, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    mine = known_as(state, command.credentials)
    if state.slots_used() >= policy.per_user and not state.closing:
        other = idle_of_others(state, mine)
        if other is not None:
            state.free.remove(other)
            drop(state, policy, now, other, partings, "room")
    if state.slots_used() >= policy.per_user:
        return NoSlot()
    state.fence += 1
    state.counters.not_leases += 1
    token = _fresh(command, now, state.fence, mine)
    partings.note("opened", token)
    give_back(state, policy, now, token, partings)
    return Done()


def _take_idle(state: UserState, policy: Policy, now: float, command: TakeIdle, partings: Partings) -> Reply:
    sweep(state, policy, now, partings)
    # Whoever waits comes first, and uses the token anyway.
    if state.tickets or not state.free or now - state.free[0].used_at < command.idle_s:
        return NoToken()
    token = state.free.pop(0)
    fence = hold(state, token, now, policy.lease_s)
    return Granted(fence, token.value, policy.lease_s, token.uses, token_id=token.token_id)


def _remove(state: UserState, policy: Policy, now: float, command: Remove, partings: Partings) -> Reply:
    def chosen(token: Token | None) -> bool:
        return token is not None and command.token_id in (None, token.token_id)

    lent = {fence: holding.token for fence, holding in state.leases.items() if chosen(holding.token)}
    count = 0
    for fence, token in lent.items():
        if command.soft and token is not None:
            doom(token)
            count += 1
        else:
            count += lose(state, policy, now, fence, partings, "removed")
    removed = [token for token in state.free if chosen(token)]
    state.free = [token for token in state.free if not chosen(token)]
    for token in removed:
        drop(state, policy, now, token, partings, "removed")
    return Done(count + len(removed))


def _reset(state: UserState, policy: Policy, now: float, command: Reset, partings: Partings) -> Reply:
    """Those who wait keep their places; the upstream may still count sessions that are forgotten here."""
    state.closing.clear()
    count = sum(lose(state, policy, now, fence, partings, "reset") for fence in list(state.leases))
    for token in state.free:
        drop(state, policy, now, token, partings, "reset")
    count += len(state.free)
    state.free = []
    state.failing = []
    state.refusals, state.refused_at = 0, -FAR
    state.rate_at = -FAR
    sweep(state, policy, now, partings)
    return Done(count)


def _then(state: UserState, policy: Policy, now: float, command: Then, partings: Partings) -> Reply:
    first: Any = _RULES[type(command.first)](state, policy, now, command.first, partings)
    second = command.second
    if type(first) is Lost:
        second = msgspec.structs.replace(second, ahead=False)
    answer: Any = _acquire(state, policy, now, second, partings)
    return Both(first, answer)


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
    RefuseToken: _refuse,
    LogoutEnded: _closed,
    Add: _add,
    LogInAhead: _log_in_ahead,
    TakeIdle: _take_idle,
    Remove: _remove,
    Reset: _reset,
    CleanUp: _clean_up,
    Then: _then,
}
