"""What operators see of a pool: counts per user, and tokens under masked names."""

from __future__ import annotations

import msgspec

from coatcheck.pool.masking import masked
from coatcheck.pool.payload import token_of
from coatcheck.pool.state import FAR, NO_LIMIT, Policy, Token, UserState


class UserStats(msgspec.Struct, frozen=True):
    """One user's pool in numbers. ``leased``: in borrowers' hands; ``logins`` and ``closing`` hold slots as well.

    ``per_user`` and ``max_uses`` (``None`` without such a limit) are those of the pool that borrowed last.
    Names ending in ``_total`` only grow, until the user is forgotten.
    """

    free: int
    leased: int
    logins: int
    closing: int
    waiting: int
    per_user: int
    max_uses: int | None
    leases_total: int
    logins_total: int
    login_failures_total: int
    drops_total: int
    lost_total: int
    timeouts_total: int


class TokenRow(msgspec.Struct, frozen=True):
    """One slot of a user. ``state``: ``free``, ``leased``, ``login`` or ``closing``; times in seconds from now."""

    user: str
    token_id: int
    state: str
    token: str  # masked
    uses: int = 0
    expires_in_s: float | None = None
    fencing: int | None = None
    deadline_in_s: float | None = None


def user_stats(state: UserState, policy: Policy) -> UserStats:
    logins = sum(holding.token is None for holding in state.leases.values())
    counters = state.counters
    per_user, max_uses = state.limits or (policy.per_user, policy.max_uses)
    return UserStats(
        free=len(state.free),
        leased=len(state.leases) - logins,
        logins=logins,
        closing=len(state.closing),
        waiting=sum(ticket.callers for ticket in state.tickets),
        per_user=per_user,
        max_uses=None if max_uses == NO_LIMIT else max_uses,
        leases_total=state.fence - state.first_fence - counters.not_leases - logins,
        logins_total=counters.logins,
        login_failures_total=counters.login_failures,
        drops_total=counters.drops,
        lost_total=counters.lost,
        timeouts_total=counters.timeouts,
    )


def token_rows(user: str, state: UserState, now: float) -> list[TokenRow]:
    rows = [_row(user, token, now, "free") for token in reversed(state.free)]
    for fence, holding in state.leases.items():
        deadline_in_s = holding.deadline - now
        if holding.token is None:
            rows.append(TokenRow(user, fence, "login", "", fencing=fence, deadline_in_s=deadline_in_s))
        else:
            row = _row(user, holding.token, now, "leased")
            rows.append(msgspec.structs.replace(row, fencing=fence, deadline_in_s=deadline_in_s))
    for fence, closing in state.closing.items():
        rows.append(
            TokenRow(
                user,
                fence,
                "closing",
                masked(token_of(closing.value)),
                fencing=fence,
                deadline_in_s=closing.deadline - now,
            )
        )
    return rows


def _row(user: str, token: Token, now: float, state: str) -> TokenRow:
    expires_in_s = None if token.expires_at == FAR else token.expires_at - now
    return TokenRow(user, token.token_id, state, masked(token_of(token.value)), token.uses, expires_in_s)
