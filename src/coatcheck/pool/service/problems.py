"""The pool's errors as JSON problems (RFC 9457)."""

from __future__ import annotations

import math
from typing import Final

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
from coatcheck.service_kit.problems import RequestRefused

TITLES: Final = {
    "unauthorized": "The bearer token is missing or wrong",
    "no-such-lease": "There is no such lease",
    "busy": "Too many requests wait",
    "lease-lost": "The lease is over",
    "callers-log-in": "The service has no login of its own, which a shared token needs",
    "timeout": "No token came free in time",
    "pool-full": "A limit of the pool is reached",
    "pool-closed": "The service is stopping",
    "login-refused": "The upstream refused these credentials for good",
    "login-failed": "The login at the upstream failed",
    "login-rate-limited": "No login now",
    "store-unavailable": "The token store does not answer",
}

_POOL_ERRORS: tuple[tuple[type[PoolError], int, str], ...] = (
    (LeaseLost, 409, "lease-lost"),
    (PoolTimeout, 503, "timeout"),
    (PoolFull, 503, "pool-full"),
    (PoolClosed, 503, "pool-closed"),
    (LoginRateLimited, 429, "login-rate-limited"),
    (LoginRefused, 403, "login-refused"),
    (LoginFailed, 502, "login-failed"),
    (StoreUnavailable, 503, "store-unavailable"),
)


def refusal_of(error: Exception) -> RequestRefused | None:
    """What to answer when the pool could not do it; ``None`` for an error that is none of its."""
    for kind, status, name in _POOL_ERRORS:
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, LoginRateLimited):
                headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
            return RequestRefused(status, name, str(error), headers)
    if isinstance(error, ValueError):
        # The pool's own words about a user, a token or a number that it cannot take; they show no secret.
        return RequestRefused(400, "bad-request", str(error))
    return None
