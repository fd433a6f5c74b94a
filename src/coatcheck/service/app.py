"""The session service's HTTP endpoint: a thin shell around the validator, the token generator and the changes."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ClassVar, Final

from cryptography import x509
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from coatcheck.drivers.key_refresh import RefreshKeys
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConflictError, SessionClosed, SessionDataError, SessionUnavailable, UnavailableReason
from coatcheck.service import forward_auth as fa
from coatcheck.service import messages as m
from coatcheck.service.answers import AnswerRefused
from coatcheck.service.assertion import AssertionTooLarge, Signer
from coatcheck.service.callers import Caller, Callers
from coatcheck.service.changes import SessionChanges
from coatcheck.service.event_stream import MAX_STREAMS, MAX_STREAMS_OF_A_CALLER, EventStream
from coatcheck.service.hand_off import SiteCrossings
from coatcheck.service.routes import API
from coatcheck.service.signals.event_tokens import KeysUnavailable
from coatcheck.service.token_generator import TokenGenerator
from coatcheck.service.validation import SessionValidator
from coatcheck.service_kit.bearer import shown_bearer, unauthorized
from coatcheck.service_kit.endpoint import Endpoint, json_answer, read_body
from coatcheck.service_kit.http_connection import connection_of
from coatcheck.service_kit.operations import ApiOperation
from coatcheck.service_kit.problems import RequestRefused
from coatcheck.sessions.answer import Answer
from coatcheck.tls.peers import Revocations, dns_names

if TYPE_CHECKING:
    from coatcheck.service.signals.endpoint import SignalEndpoint

ANY_METHOD: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
"""Envoy asks with the method of the browser's request."""
EVENTS_SCOPE: Final = "events"
NO_SESSION: Final = "what was shown opens no session"

TITLES: Final = {
    "unauthorized": "The credential is missing or wrong",
    "not-allowed": "This caller may not do that",
    "too-many-requests": "This caller asks too often",
    "too-many-new-sessions": "This client begins too many sessions",
    "no-session": "There is no such session",
    "no-sites": "This service knows of no sites",
    "not-logged-in": "There is no login",
    "conflict": "The session has changed or ended meanwhile",
    "claims-too-large": "The claims do not fit into a header",
    "busy": "Too many streams are open",
    "unavailable": "The session servers do not answer",
}


class SessionEndpoint(Endpoint):
    """Handlers by the names of the operations. ``callers`` says who may ask now; ``revocations``: of their
    certificates; ``refresh_keys``: as :class:`coatcheck.service.service.SessionService` takes it."""

    TITLES: ClassVar = TITLES

    def __init__(
        self,
        sessions: Sessions,
        callers: Callable[[], Callers],
        signer: Signer,
        events: EventStream,
        revocations: Revocations | None = None,
        signals: SignalEndpoint | None = None,
        refresh_keys: RefreshKeys | None = None,
    ) -> None:
        super().__init__(API)
        self._refresh_keys = refresh_keys
        self._signals = signals
        self._sessions = sessions
        self._callers = callers
        self._signer = signer
        self._events = events
        self._revocations = revocations
        self._validator = SessionValidator(sessions)
        self._tokens = TokenGenerator(sessions)
        self._changes = SessionChanges(sessions)
        self._crossings = SiteCrossings(sessions)

    # -- who asks ----------------------------------------------------------------------------------

    async def admit(self, operation: ApiOperation, request: Request) -> None:
        """Only for a caller whom we know, who may do that, and does not ask too often."""
        known = self._callers()
        caller = self._caller(known, request)
        if caller is None and self._refresh_keys is not None and known.may_be_of_another_key(_credential(request)):
            if not await self._refresh_keys():
                raise SessionUnavailable(UnavailableReason.KEYS)
            known = self._callers()
            caller = self._caller(known, request)
        if caller is None:
            raise unauthorized("send a credential")
        wait_s = known.wait_s(caller, time.monotonic())
        if wait_s:
            headers = {"Retry-After": str(math.ceil(wait_s))}
            raise RequestRefused(429, "too-many-requests", f"{caller.requests_per_minute} a minute", headers)
        if operation.scope not in caller.scopes:
            raise RequestRefused(403, "not-allowed", f"this needs the scope {operation.scope}")
        request.state.caller = caller

    def _caller(self, known: Callers, request: Request) -> Caller | None:
        shown = _credential(request)
        if shown is not None:
            caller = known.of_credential(shown)
            if caller is not None:
                return caller
        connection = connection_of(request.scope)
        if connection is None or connection.certificate is None:
            return None
        certificate = x509.load_der_x509_certificate(connection.certificate)
        if self._revocations is not None and self._revocations.has(certificate):
            return None
        return known.of_certificate(dns_names(certificate))

    def refusal_of(self, error: Exception) -> RequestRefused | None:
        """What went wrong with a session, as the middleware answers it."""
        if isinstance(error, AnswerRefused):
            return _refusal(error.answer)
        if isinstance(error, SessionUnavailable | SessionClosed | ConflictError):
            return _refusal(Answer.refusal(error))
        if isinstance(error, KeysUnavailable):
            return RequestRefused(503, "unavailable", str(error), {"Retry-After": "10"})
        if isinstance(error, SessionDataError):
            return RequestRefused(400, "bad-request", str(error))
        return None

    # -- sessions ----------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.Create)
        cookie = _cookie(asked.cookie)
        try:
            made = await self._tokens.create(
                asked.user,
                asked.data,
                cookie=cookie,
                client=asked.client,
                device=asked.device,
                remember=asked.remember,
                id_token=asked.id_token,
            )
        except ValueError as error:
            raise RequestRefused(400, "bad-request", str(error)) from None
        return json_answer(made, 201)

    async def verify(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.Verify)
        state = await self._validator.verify(_cookie(asked.cookie), asked.client)
        if state is None:
            raise RequestRefused(404, "no-session", NO_SESSION)
        return json_answer(m.Verified(state))

    async def renew(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.Renew)
        return _given(await self._tokens.renew(_cookie(asked.cookie), asked.client, asked.now))

    async def update(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.Update)
        cookie = _cookie(asked.cookie)
        change = self._changes.update(cookie, asked.set, asked.delete, version=asked.version, client=asked.client)
        return _given(await change)

    async def close(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.CloseSession)
        return json_answer(await self._changes.close(_cookie(asked.cookie), asked.client))

    async def handOff(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.HandOff)
        path, _, query = asked.url.partition("?")
        found = await self._crossings.answer(
            _cookie(asked.cookie), asked.method, path, query, cross_site=asked.cross_site, client=asked.client
        )
        if found is None:
            raise RequestRefused(404, "no-sites", "it was started without [sites] in its configuration")
        return json_answer(found)

    async def sessionsOfUser(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.OfUser)
        return json_answer(m.SessionsOfUser(await self._changes.sessions_of(asked.user)))

    async def closeUser(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.CloseUser)
        closed = await self._changes.close_user(asked.user, _cookie(asked.cookie), asked.client)
        if closed is None:
            raise RequestRefused(404, "no-session", "the cookie opens no session of this user")
        return json_answer(closed)

    async def events(self, request: Request) -> Response:
        caller: Caller = request.state.caller
        if not self._events.has_room(caller.name):
            said = f"{MAX_STREAMS} streams are open, or {MAX_STREAMS_OF_A_CALLER} of yours"
            raise RequestRefused(503, "busy", said, {"Retry-After": "10"})

        def may_listen() -> bool:
            """As if it was asked now, by what was shown then."""
            found = self._caller(self._callers(), request)
            return found is not None and found.name == caller.name and EVENTS_SCOPE in found.scopes

        stream = self._events.follow(request.headers.get("last-event-id"), may_listen, caller.name)
        return StreamingResponse(stream, media_type="text/event-stream")

    # -- for proxies -------------------------------------------------------------------------------

    async def forwardAuth(self, request: Request) -> Response:
        caller: Caller = request.state.caller
        header = b"; ".join(value for name, value in request.scope["headers"] if name == b"cookie")
        found = await self._tokens.renew(header, fa.client_of(request.headers))
        if found is None or found.session.user is None:
            return self._login_needed(caller, request)
        state, user = found.session, found.session.user
        claims = fa.claims_of(state.data, caller.claims)
        try:
            assertion = self._signer.sign(caller.audience, user, state.id, claims, int(self._sessions.now_s()))
        except AssertionTooLarge as error:
            raise RequestRefused(403, "claims-too-large", str(error)) from None
        headers = {fa.USER_HEADER: fa.user_header(user), fa.ASSERTION_HEADER: assertion}
        response = Response(status_code=200, headers=headers)
        # One at most: proxies pass the first on, or join several to one, which a browser reads as something else. An
        # anonymous cookie that is left over is forgotten with the next answer of the app.
        for line in found.set_cookie[:1]:
            response.headers.append("Set-Cookie", line)
        return response

    def _login_needed(self, caller: Caller, request: Request) -> Response:
        headers = {"WWW-Authenticate": "Cookie"}
        if caller.login_url:
            login = fa.login_redirect(caller.login_url, request.headers, _target(request))
            if fa.is_navigation(request.headers):
                return Response(status_code=302, headers={"Location": login})
            headers[fa.LOGIN_HEADER] = login
        return self.refuse(RequestRefused(401, "not-logged-in", "this needs a login", headers))

    def more_routes(self) -> list[Route]:
        """The same for proxies that ask with the browser's method, and put its path behind ours; and logout signals,
        whose addresses and bodies other specifications describe."""
        operation = next(each for each in API.operations if each.name == "forwardAuth")
        handler: Callable[[Request], Awaitable[Response]] = self.guarded(operation)
        routes = [Route(path, handler, methods=ANY_METHOD) for path in (fa.PATH, fa.PATH + "/{rest:path}")]
        return routes if self._signals is None else [*routes, *self._signals.routes(self.counted)]

    async def jwks(self, request: Request) -> Response:
        return json_answer(m.Jwks(self._signer.jwks))

    async def health(self, request: Request) -> Response:
        servers = self._sessions.status()["session_servers"]
        if not any(servers.values()):
            raise RequestRefused(503, "unavailable", "no session server answers", {"Retry-After": "1"})
        return json_answer(m.SessionServiceHealth("ok", servers))


def _credential(request: Request) -> str | None:
    """What stands behind ``Bearer``; ``None``: no credential is shown."""
    return shown_bearer(request.headers.get("authorization", ""))


def _target(request: Request) -> str:
    query: bytes = request.scope["query_string"]
    raw: bytes = request.scope["raw_path"]
    return (raw + b"?" + query if query else raw).decode("latin-1")


def _cookie(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise RequestRefused(400, "bad-request", "cookie: a header's bytes as Latin-1") from None


def _given(found: m.Given | None) -> Response:
    if found is None:
        raise RequestRefused(404, "no-session", NO_SESSION)
    return json_answer(found)


def _refusal(answer: Answer) -> RequestRefused:
    names = {503: "unavailable", 429: "too-many-new-sessions", 409: "conflict"}
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return RequestRefused(answer.status, names[answer.status], answer.refused, headers)
