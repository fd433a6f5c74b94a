"""Every address of the session service in one table."""

from __future__ import annotations

from typing import Final

from coatcheck.service import messages as m
from coatcheck.service.forward_auth import PATH
from coatcheck.service_kit.operations import Api, ApiOperation

OPENAPI: Final = "application/json"
EVENTS: Final = "text/event-stream"

OPERATIONS: Final = (
    ApiOperation(
        "POST",
        "/v1/sessions",
        "create",
        "Begin a session; with a user, log in. Its browser is to be given the cookie.",
        {201: m.Given},
        m.Create,
        (409, 429),
        scope="create",
    ),
    ApiOperation(
        "POST",
        "/v1/sessions/verify",
        "verify",
        "Whose session does this browser show? Changes neither its token nor its timeouts.",
        {200: m.Verified},
        m.Verify,
        (404, 429),
        body_needed=True,
        scope="verify",
    ),
    ApiOperation(
        "POST",
        "/v1/sessions/renew",
        "renew",
        "Verify it for a request of its browser, and give that the next token if one is due. May be repeated.",
        {200: m.Given},
        m.Renew,
        (404, 409, 429),
        body_needed=True,
        scope="renew",
    ),
    ApiOperation(
        "POST",
        "/v1/sessions/update",
        "update",
        "Change its data, key by key; 409 if it is of another version than the one named.",
        {200: m.Given},
        m.Update,
        (404, 409, 429),
        body_needed=True,
        scope="update",
    ),
    ApiOperation(
        "POST",
        "/v1/sessions/close",
        "close",
        "Log out: end the session on every server. May be repeated.",
        {200: m.ClosedSession},
        m.CloseSession,
        (409, 429),
        body_needed=True,
        scope="close",
    ),
    ApiOperation(
        "POST",
        "/v1/hand-off",
        "handOff",
        "Where does this request belong? Hands its session over to another site, or redeems what one has handed over.",
        {200: m.HandedOff},
        m.HandOff,
        (404, 409, 429),
        body_needed=True,
        scope="hand-off",
    ),
    ApiOperation(
        "POST",
        "/v1/users/sessions",
        "sessionsOfUser",
        "The sessions of a user: devices, addresses, last activity. Changes nothing.",
        {200: m.SessionsOfUser},
        m.OfUser,
        (429,),
        body_needed=True,
        scope="list-user",
    ),
    ApiOperation(
        "POST",
        "/v1/users/close",
        "closeUser",
        "Log a user out everywhere, or everywhere but here. May be repeated.",
        {200: m.ClosedUser},
        m.CloseUser,
        (404, 409, 429),
        body_needed=True,
        scope="close-user",
    ),
    ApiOperation(
        "GET",
        "/v1/events",
        "events",
        "What happens to sessions in this process, as Server-Sent Events.",
        {200: EVENTS},
        problems=(429,),
        scope="events",
        headers={"Last-Event-ID": "Of the last event that you were told."},
    ),
    ApiOperation(
        "GET",
        PATH,
        "forwardAuth",
        "For proxies: may the request with this Cookie header go on? 302: to the login.",
        {200: None, 302: None},
        problems=(404, 409, 429),
        scope="forward-auth",
        headers={
            "Cookie": "The browser's.",
            "X-Original-URI": "Path and query of its request.",
            "X-Forwarded-For": "Its address; the last one counts.",
        },
    ),
    ApiOperation("GET", "/v1/jwks", "jwks", "Keys that verify signed headers.", {200: m.Jwks}, open=True),
    ApiOperation(
        "GET", "/healthz", "health", "Whether a session server answers.", {200: m.SessionServiceHealth}, open=True
    ),
    ApiOperation("GET", "/openapi.json", "openapi", "This document.", {200: OPENAPI}, open=True),
)

API: Final = Api(
    title="coatcheck session service",
    words="Creates, verifies, renews and closes the sessions of a farm for servers in any language.",
    operations=OPERATIONS,
    parameters={},
    security={"credential": {"type": "http", "scheme": "bearer"}, "certificate": {"type": "mutualTLS"}},
    # A bad request, nobody we know, nothing that the caller may do, and session servers that do not answer.
    common_problems=(400, 401, 403, 503),
)
