"""Every error as a JSON problem (RFC 9457)."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from coatcheck.pool.errors import (
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    StoreUnavailable,
)
from coatcheck.pool.service.messages import Problem

PROBLEM_TYPE = "application/problem+json"


class RequestRefused(Exception):
    """A request that is refused before the pool is asked."""

    def __init__(self, status: int, name: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.headers = headers or {}


TITLES = {
    "bad-request": "The request is wrong",
    "unauthorized": "The bearer token is missing or wrong",
    "no-such-lease": "There is no such lease",
    "no-such-page": "There is nothing here",
    "wrong-method": "This method is not for this address",
    "too-large": "The request is too large",
    "too-slow": "The request took too long",
    "wrong-content-type": "The request is not JSON",
    "busy": "Too many requests wait",
    "lease-lost": "The lease is over",
    "timeout": "No token came free in time",
    "pool-full": "A limit of the pool is reached",
    "pool-closed": "The service is stopping",
    "login-failed": "The login at the upstream failed",
    "login-rate-limited": "No login now",
    "store-unavailable": "The token store does not answer",
    "internal": "The service failed",
}

_POOL_ERRORS: tuple[tuple[type[PoolError], int, str], ...] = (
    (LeaseLost, 409, "lease-lost"),
    (PoolTimeout, 503, "timeout"),
    (PoolFull, 503, "pool-full"),
    (PoolClosed, 503, "pool-closed"),
    (LoginRateLimited, 429, "login-rate-limited"),
    (LoginFailed, 502, "login-failed"),
    (StoreUnavailable, 503, "store-unavailable"),
)


def refused(error: RequestRefused) -> Response:
    """The answer to a request that was refused."""
    return _response(error.status, error.name, error.detail, error.headers)


def pool_problem(error: PoolError) -> Response:
    """The answer when the pool could not do it."""
    for kind, status, name in _POOL_ERRORS:
        if isinstance(error, kind):
            headers = {}
            if isinstance(error, LoginRateLimited):
                headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
            return _response(status, name, str(error), headers)
    return _response(500, "internal", "the service failed; its log has the reason", {})


def _response(status: int, name: str, detail: str, headers: dict[str, str]) -> Response:
    problem = Problem(f"urn:coatcheck:problem:{name}", TITLES[name], status, detail)
    return Response(msgspec.json.encode(problem), status, headers, PROBLEM_TYPE)
