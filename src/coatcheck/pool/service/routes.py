"""Every address of the service in one table, from which both the routes and the OpenAPI document are made."""

from __future__ import annotations

from typing import Final

from coatcheck.pool.service import messages as m
from coatcheck.pool.service.lease_id import MAX_LEASE_ID_CHARS
from coatcheck.service_kit.operations import Api, ApiOperation

OPENAPI: Final = "application/json"
METRICS: Final = "text/plain"

SOFT: Final = {"soft": "What is lent may be used on, and is dropped when it is given back."}

OPERATIONS: Final = (
    ApiOperation(
        "POST",
        "/v1/users/{user}/checkout",
        "checkOut",
        "Check a token out. 201: there is none, but a place for one; log in and complete the lease.",
        {200: m.LentToken, 201: m.LoginLease},
        m.CheckOut,
        (403, 429, 502),
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/complete",
        "complete",
        "Bring the token of a login that a check-out asked for; the lease goes on with it.",
        {200: m.LentToken},
        m.Complete,
        (404, 409),
        body_needed=True,
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/fail",
        "fail",
        "The login that a check-out asked for failed; others may try, after a pause. May be repeated.",
        {204: None},
        m.Fail,
        (404, 409),
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/checkin",
        "checkIn",
        "Check the token in, with the refreshed one if the upstream sent one. May be repeated.",
        {204: None},
        m.CheckIn,
        (404, 409),
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/drop",
        "drop",
        "The upstream says that the token is dead: never hand it out again. May be repeated.",
        {204: None},
        m.Drop,
        (404, 409),
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/refuse",
        "refuseToken",
        "The upstream refused the token; the lease ends. The answer says whether to try another. May be repeated.",
        {200: m.TokenRefused},
        m.Nothing,
        (404, 409),
    ),
    ApiOperation(
        "POST",
        "/v1/leases/{lease}/renew",
        "renew",
        "Give the lease a new deadline, a lease time from now.",
        {200: m.Renewed},
        m.Nothing,
        (404, 409),
    ),
    ApiOperation(
        "POST",
        "/v1/users/{user}/shared",
        "share",
        "The token that all callers use at once (OAuth), renewed ahead of its end. Ask before each call.",
        {200: m.SharedGiven},
        m.CheckOut,
        (403, 409, 429, 502),
    ),
    ApiOperation(
        "POST",
        "/v1/users/{user}/shared/refuse",
        "refuseShared",
        "The upstream refused a shared token. The answer says whether to ask for a better one.",
        {200: m.TokenRefused},
        m.RefuseShared,
        (409,),
        body_needed=True,
    ),
    ApiOperation("GET", "/v1/stats", "stats", "Numbers per user.", {200: m.Stats}),
    ApiOperation("GET", "/v1/users", "users", "Every slot of every user, tokens masked.", {200: m.Users}),
    ApiOperation("GET", "/v1/users/{user}", "user", "Every slot of one user, tokens masked.", {200: m.Users}),
    ApiOperation(
        "DELETE", "/v1/users/{user}", "removeUser", "Drop all tokens of a user.", {200: m.Removed}, flags=SOFT
    ),
    ApiOperation(
        "DELETE",
        "/v1/users/{user}/tokens/{token_id}",
        "removeToken",
        "Drop one token of a user, wherever it is.",
        {200: m.Removed},
        flags=SOFT,
    ),
    ApiOperation("POST", "/v1/clean-up", "cleanUp", "Drop what has expired.", {200: m.Removed}, m.Nothing),
    ApiOperation("GET", "/metrics", "metrics", "Prometheus text.", {200: METRICS}),
    ApiOperation("GET", "/healthz", "health", "Whether it works.", {200: m.ServiceHealth}, open=True),
    ApiOperation("GET", "/openapi.json", "openapi", "This document.", {200: OPENAPI}, open=True),
)

API: Final = Api(
    title="coatcheck pool",
    words="Session tokens of an upstream, leased to one caller at a time.",
    operations=OPERATIONS,
    parameters={
        "user": {"type": "string", "minLength": 1, "maxLength": 1024},
        "lease": {"type": "string", "maxLength": MAX_LEASE_ID_CHARS},
        "token_id": {"type": "integer", "minimum": 1},
    },
    security={"bearer": {"type": "http", "scheme": "bearer"}},
    # A bad request, no bearer token, and a store that does not answer or a service that is full.
    common_problems=(400, 401, 503),
)
