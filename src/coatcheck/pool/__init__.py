"""Outbound session tokens: leave an upstream's session token here, and the next call needs no login.

It stands alone: nothing else of coatcheck is needed. What adapters, services and commands build on::

    pool = TokenPool(login=sign_in, logout=sign_out, per_user=4, max_uses=500, ttl="15m", lease="60s", wait="10s")
    pool = TokenPool(login=sign_in, store="sqlite:///tokens.db", key=KEY)   # redis://...  postgresql://...
    # login(user) or login(user, password) -> str
    #     | SignedIn(token, expires_in_s=None, payload=None, refresh_token=None, upstream_state=None)
    # logout(user, token); probe(user, token) -> bool; keepalive(user, token) -> str | None

    with pool.lease("SADMIN") as held:                 # lease(user, password=None, *, wait=None) -> TokenLease
        reply = call(token=held.token)
        held.renew(reply.session_token)                # the refreshed token; stored when the lease is given back
        # held.user, held.token, held.fencing, held.deadline (seconds on held.clock()), held.remaining_s(), held.drop()

    held = pool.lease("SADMIN").acquire()              # without `with`; held.release(failed=False, token=None)
    held = pool.resume("SADMIN", fencing)              # another process's lease: release, drop, extend
    held.extend()                                      # a new deadline, one lease time from now, or LeaseLost

    shared = pool.shared("SVC")                        # one token for all who ask: shared.get().token, .payload
    shared.invalidate(token)                           # the upstream refused it; -> bool, whether to ask again

    pool.check_out(user, password=None)                # TokenObject | NULL_TOKEN, never waits and never logs in
    pool.check_in(user, token_object, token_string, password=None)  # NULL_TOKEN: a new token after one's own login
    pool.remove(user, token_object)                    # -> bool; the upstream said that it is dead
    pool.remove_token(user, token_id=None)             # -> int; an operator drops one token (or all) of a user
    pool.clean_up()                                    # -> int, how many tokens were dropped
    pool.stats()                                       # -> dict[str, UserStats]
    pool.list(user=None)                               # -> list[TokenRow], tokens masked
    pool.close(timeout="10s")                          # also a context manager

``AsyncTokenPool`` has the same names: ``async with pool.lease(...)``, and every other method awaited; inside a lease
``renew`` and ``drop`` are plain calls (they take effect when the lease is given back), ``extend`` is awaited.
Errors are all under ``PoolError`` (a ``CoatcheckError``): ``LeaseLost``, ``PoolTimeout``, ``PoolFull``, ``PoolClosed``,
``LoginFailed``, ``LoginRefused`` (a ``LoginFailed`` that ``login`` raises for good), ``LoginRateLimited`` (all with
``user``; the last with ``retry_after_s``), ``StoreUnavailable``.
"""

from coatcheck.pool.aio import AsyncTokenLease, AsyncTokenPool
from coatcheck.pool.audit import PoolAuditLog, PoolAuditRecord, calling_as
from coatcheck.pool.classic import NULL_TOKEN, SessionPool, TokenObject, UserSessionPool
from coatcheck.pool.errors import (
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    LoginRefused,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    StoreUnavailable,
)
from coatcheck.pool.events import PoolEvent, PoolEventKind
from coatcheck.pool.inspection import TokenRow, UserStats
from coatcheck.pool.options import SignedIn
from coatcheck.pool.shared.credentials import AsyncSharedCredentials, SharedCredentials
from coatcheck.pool.shared.seen import SharedToken
from coatcheck.pool.threads import TokenLease, TokenPool

__all__ = [
    "NULL_TOKEN",
    "AsyncSharedCredentials",
    "AsyncTokenLease",
    "AsyncTokenPool",
    "LeaseLost",
    "LoginFailed",
    "LoginRateLimited",
    "LoginRefused",
    "PoolAuditLog",
    "PoolAuditRecord",
    "PoolClosed",
    "PoolError",
    "PoolEvent",
    "PoolEventKind",
    "PoolFull",
    "PoolTimeout",
    "SessionPool",
    "SharedCredentials",
    "SharedToken",
    "SignedIn",
    "StoreUnavailable",
    "TokenLease",
    "TokenObject",
    "TokenPool",
    "TokenRow",
    "UserSessionPool",
    "UserStats",
    "calling_as",
]
