"""The tokens and slots of one user: what their state says, and how they change hands.

The commands of :mod:`coatcheck.pool.rules` are made of these; they have the same promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from hmac import compare_digest as same
from typing import Final

from coatcheck.pool.commands import Parting, TokenNote
from coatcheck.pool.state import (
    FAR,
    MAX_FAILING,
    NONE_GIVEN,
    REFUSED_S,
    Closing,
    Failing,
    Holding,
    Policy,
    Ticket,
    Token,
    UserState,
)


class Partings(list[Parting]):
    """The tokens that a command drops and that are to be logged out; and its notes for the audit, if there is one."""

    def __init__(self, *, audited: bool) -> None:
        super().__init__()
        self.notes: list[TokenNote] = []
        self._audited = audited

    def note(self, what: str, token: Token, lease: int = 0) -> None:
        if self._audited:
            self.notes.append(TokenNote(what, token.token_id, lease))


ENDED_S: Final = 0.0
"""The span of a token that is to be dropped when it comes back."""


def clamp(state: UserState, policy: Policy, now: float) -> None:
    """Let no stored moment be farther away than its own length: the clock was ahead when it was written down.

    Where the clock only went on, this changes nothing. The lengths are those of whoever wrote the moment, for other
    processes may have another policy.
    """
    for failing in state.failing:
        failing.failed_at = min(failing.failed_at, now)
    state.rate_at = min(state.rate_at, now + state.rate_s)
    state.refused_at = min(state.refused_at, now)
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
        token.opened_at = min(token.opened_at, now)
        token.dies_at = min(token.dies_at, now + token.span_s)
        token.expires_at = min(token.expires_at, now + token.life_s, token.dies_at)


# -- whose tokens they are: credentials are compared as keyed hashes, in constant time


def known_as(state: UserState, credentials: tuple[bytes, ...]) -> bytes:
    """The one hash by which the state knows these credentials: that of the key which seals now.

    What was written under another key of the pool is renamed.
    """
    if not credentials:
        return NONE_GIVEN
    mine, *former = credentials
    if former:
        owned: list[Token | Holding | Ticket | Failing] = [*state.free, *state.leases.values(), *state.tickets]
        owned += [holding.token for holding in state.leases.values() if holding.token is not None]
        for thing in [*owned, *state.failing]:
            if any(same(thing.credentials, other) for other in former):
                thing.credentials = mine
        if any(same(state.proven, other) for other in former):
            state.proven = mine
    return mine


def failing_of(state: UserState, credentials: bytes) -> Failing | None:
    for failing in state.failing:
        if same(failing.credentials, credentials):
            return failing
    return None


def is_refused(state: UserState, now: float, credentials: bytes) -> bool:
    """Whether the upstream refused these credentials for good, not too long ago."""
    failing = failing_of(state, credentials)
    return failing is not None and failing.refused and now < failing.retry_at()


def note_failure(state: UserState, policy: Policy, now: float, credentials: bytes, *, refused: bool) -> None:
    """These credentials alone are held off, the longer the more often they failed in a row."""
    failing = failing_of(state, credentials)
    if failing is None:
        if len(state.failing) >= MAX_FAILING:
            state.failing.remove(min(state.failing, key=lambda other: other.failed_at + other.keeps_place_s))
        failing = Failing(credentials)
        state.failing.append(failing)
    failing.failures = min(failing.failures + 1, 32)
    backoff_s = min(policy.backoff_first_s * 2.0 ** (failing.failures - 1), policy.backoff_max_s)
    failing.failed_at = now
    failing.retry_s = REFUSED_S if refused else backoff_s
    failing.keeps_place_s = policy.backoff_max_s
    failing.refused = refused


def note_success(state: UserState, credentials: bytes) -> None:
    state.failing = [failing for failing in state.failing if not same(failing.credentials, credentials)]
    state.proven = credentials


def _is_proven(state: UserState, credentials: bytes) -> bool:
    """Whether these credentials were right when they were tried last, as far as the state remembers."""
    tokens = [*state.free, *(holding.token for holding in state.leases.values() if holding.token is not None)]
    return same(state.proven, credentials) or any(same(token.credentials, credentials) for token in tokens)


# -- what the state says


class Claim(Enum):
    """What a caller may have now. ``MAKE_ROOM``: a login, once an idle token of other credentials is dropped."""

    TOKEN = "token"
    LOGIN = "login"
    MAKE_ROOM = "make room"
    REFUSED = "refused"


def claims(
    state: UserState, policy: Policy, now: float, callers: Iterable[Ticket]
) -> Iterator[tuple[int, Claim, Token | None]]:
    """Who of ``callers`` may have what, first come, first served; the token is the one to drop for ``MAKE_ROOM``.

    Who cannot be served does not hold up those behind who can: each has tokens and back-offs of its own credentials.
    """
    free = list(state.free)
    room = policy.per_user - state.slots_used()
    coming = len(state.closing)  # slots that are free soon
    logging_in = [holding.credentials for holding in state.leases.values() if holding.token is None]
    refusing = any(failing.refused for failing in state.failing)
    in_vain: bytes | None = None
    for caller in callers:
        if not free and room <= 0 and not refusing:
            return
        mine = caller.credentials
        if in_vain is not None and same(mine, in_vain):
            continue  # as for the one before
        token = last_of(free, mine)
        if token is not None:
            free.remove(token)
            yield caller.number, Claim.TOKEN, None
        elif is_refused(state, now, mine):
            yield caller.number, Claim.REFUSED, None
        elif not may_log_in(state, policy, now, mine, logging_in):
            in_vain = mine
        elif room > 0:
            room -= 1
            logging_in.append(mine)
            yield caller.number, Claim.LOGIN, None
        elif coming > 0:
            coming -= 1
            logging_in.append(mine)
        elif free:
            logging_in.append(mine)
            yield caller.number, Claim.MAKE_ROOM, free.pop(0)
        else:
            in_vain = mine


def last_of(tokens: list[Token], credentials: bytes) -> Token | None:
    """Of those that these credentials opened, the one that was used last."""
    for token in reversed(tokens):
        if same(token.credentials, credentials):
            return token
    return None


def idle_of_others(state: UserState, credentials: bytes) -> Token | None:
    """Of the free tokens that other credentials opened, the one that was used first."""
    for token in state.free:
        if not same(token.credentials, credentials):
            return token
    return None


def may_log_in(state: UserState, policy: Policy, now: float, mine: bytes, logging_in: list[bytes]) -> bool:
    """Whether a login with these credentials may start. After a failure, one tries at a time."""
    if now < login_allowed_at(state, policy, mine):
        return False
    return failing_of(state, mine) is None or not any(same(mine, other) for other in logging_in)


def login_allowed_at(state: UserState, policy: Policy, credentials: bytes) -> float:
    """When the next login may start: after the back-off of these credentials, and within the user's rate (GCRA)."""
    burst_s = policy.login_every_s * (policy.login_burst - 1)
    rate_at = state.rate_at - burst_s if policy.login_every_s else -FAR
    failing = failing_of(state, credentials)
    if failing is not None:
        return max(rate_at, failing.retry_at())
    if len(state.failing) < MAX_FAILING or _is_proven(state, credentials):
        return rate_at
    return max(rate_at, min(other.failed_at + other.keeps_place_s for other in state.failing))


def turns(state: UserState, policy: Policy, now: float) -> list[int]:
    """The tickets whose turn it is, first come, first served."""
    if not state.tickets:
        return []
    return [number for number, _, _ in claims(state, policy, now, state.tickets)]


def heads(state: UserState) -> list[Ticket]:
    """The first who waits with each credentials: what changes by itself is for them to see.

    Where no login has failed it changes for all at once, so the first of all is enough.
    """
    if not state.failing:
        return state.tickets[:1]
    found: list[Ticket] = []
    for ticket in state.tickets:
        if not any(same(ticket.credentials, head.credentials) for head in found):
            found.append(ticket)
    return found


def changes_at(state: UserState, policy: Policy, now: float, credentials: bytes) -> float:
    """When a caller who waits may be served though nobody gives anything back: an overdue slot, an allowed login."""
    limited_s = login_wait_s(state, policy, now, credentials)
    return min(state.next_deadline, now + limited_s) if limited_s else state.next_deadline


def login_wait_s(state: UserState, policy: Policy, now: float, credentials: bytes) -> float:
    """How long the next login has to wait though it could have a slot; 0 if one may start, or if no slot is."""
    if state.slots_used() >= policy.per_user and idle_of_others(state, credentials) is None:
        return 0.0
    return max(0.0, login_allowed_at(state, policy, credentials) - now)


def is_spent(token: Token, policy: Policy, now: float) -> bool:
    """Whether the token may not be handed out again: used up, expired, or too close to expiry."""
    return token.uses >= policy.max_uses or now + policy.min_remaining_s >= token.expires_at


def _why_spent(token: Token, policy: Policy) -> str:
    if token.span_s == ENDED_S:
        return "removed"
    return "used_up" if token.uses >= policy.max_uses else "expired"


def hold(
    state: UserState,
    token: Token | None,
    now: float,
    length_s: float,
    fence: int = 0,
    credentials: bytes = NONE_GIVEN,
) -> int:
    """Put a token (or a login with ``credentials``) into somebody's hands for so long; returns the fencing number."""
    deadline = now + length_s
    if not fence:
        state.fence = fence = state.fence + 1
    state.leases[fence] = Holding(token, deadline, length_s, credentials)
    if deadline < state.next_deadline:
        state.next_deadline = deadline
    return fence


def give_back(state: UserState, policy: Policy, now: float, token: Token, partings: Partings) -> bool:
    """After a use: the token lives on, and is the next to be taken, unless it is spent. Returns whether it does."""
    token.used_at = now
    token.expires_at = min(now + token.life_s, token.dies_at)
    if is_spent(token, policy, now):
        drop(state, policy, now, token, partings, _why_spent(token, policy))
        return False
    state.free.append(token)
    return True


def drop(
    state: UserState,
    policy: Policy,
    now: float,
    token: Token,
    partings: Partings,
    why: str,
    *,
    lease: int = 0,
    sign_out: bool = True,
) -> None:
    """Take a token out of use. While the upstream may still count its session, the slot stays taken.

    ``why`` and ``lease``: as in :class:`TokenNote`.
    """
    state.counters.drops += 1
    partings.note(why, token, lease)
    if sign_out and policy.signs_out:
        state.fence += 1
        state.counters.not_leases += 1
        deadline = now + policy.logout_timeout_s
        state.closing[state.fence] = Closing(token.value, deadline, policy.logout_timeout_s)
        state.next_deadline = min(state.next_deadline, deadline)
        partings.append(Parting(state.fence, token.value, token.token_id))


def doom(token: Token) -> None:
    """Whoever has it may use it on; given back, also with a fresh value, it is spent: its span is over."""
    token.span_s, token.dies_at = ENDED_S, -FAR


def owners(state: UserState, *, lent: bool = True, coming: bool = False) -> list[bytes]:
    """The credentials of each token that is to be lent again.

    ``lent``: also of those in somebody's hands. ``coming``: also of the logins that go on.
    """
    found = [token.credentials for token in state.free]
    for holding in state.leases.values():
        token = holding.token
        if coming if token is None else lent and token.span_s != ENDED_S:
            found.append(holding.credentials if token is None else token.credentials)
    return found


def sweep(state: UserState, policy: Policy, now: float, partings: Partings) -> int:
    """Recover what is overdue and drop what is spent; returns how many tokens were dropped.

    A lease past its deadline is dropped, never freed: its borrower may still be using the token.
    """
    dropped = 0
    if now >= state.next_deadline:
        for fence in [fence for fence, closing in state.closing.items() if now >= closing.deadline]:
            del state.closing[fence]
        for fence in [fence for fence, holding in state.leases.items() if now >= holding.deadline]:
            dropped += lose(state, policy, now, fence, partings, "lost")
        deadlines = [holding.deadline for holding in state.leases.values()]
        state.next_deadline = min([*deadlines, *(closing.deadline for closing in state.closing.values())], default=FAR)
    spent = [token for token in state.free if is_spent(token, policy, now)]
    if spent:
        state.free = [token for token in state.free if not is_spent(token, policy, now)]
        for token in spent:
            drop(state, policy, now, token, partings, _why_spent(token, policy))
    if state.failing:
        state.failing = [failing for failing in state.failing if now < failing.ends_at()]
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


def lose(state: UserState, policy: Policy, now: float, fence: int, partings: Partings, why: str) -> int:
    holding = state.leases.pop(fence)
    state.counters.lost += 1
    if holding.token is None:
        state.counters.not_leases += 1
        return 0  # a login that took too long; what it brings is logged out when it comes
    drop(state, policy, now, holding.token, partings, why, lease=fence)
    return 1


def current(state: UserState, now: float, fence: int) -> Holding | None:
    """The lease ``fence`` if it is still its borrower's: before the deadline to the very moment."""
    holding = state.leases.get(fence)
    return None if holding is None or now >= holding.deadline else holding
