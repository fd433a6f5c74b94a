"""The addresses of logout signals: tokens come in, and what describes us as a transmitter goes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coatcheck.service.signals.event_tokens import MAX_TOKEN_CHARS, EventTokenRefused
from coatcheck.service.signals.receiving import SignalReceiver
from coatcheck.service.signals.transmitting import JWKS_PATH, SSF_PATH, SignalSender, configuration_of
from coatcheck.service_kit.endpoint import read_bytes
from coatcheck.service_kit.problems import RequestRefused

LOGOUT_PATH: Final = "/v1/signals/{provider}/logout"
EVENTS_PATH: Final = "/v1/signals/{provider}/events"
FORM: Final = "application/x-www-form-urlencoded"
EVENT: Final = "application/secevent+jwt"
MAX_BODY_BYTES: Final = 2 * MAX_TOKEN_CHARS
MAX_FIELDS: Final = 8

Handler = Callable[[Request], Awaitable[Response]]


class SignalEndpoint:
    """``receivers``: by the provider's name in its addresses. Whoever has a good token is admitted; nobody else is."""

    def __init__(self, receivers: Mapping[str, SignalReceiver], sender: SignalSender | None) -> None:
        self._receivers = receivers
        self._sender = sender

    def routes(self, counted: Callable[[Handler], Handler]) -> list[Route]:
        """``counted``: what every handler of the service goes through."""
        routes = [
            Route(LOGOUT_PATH, counted(self.logout), methods=["POST"]),
            Route(EVENTS_PATH, counted(self.event), methods=["POST"]),
        ]
        if self._sender is not None:
            routes.append(Route(SSF_PATH, counted(self.configuration), methods=["GET"]))
            routes.append(Route(JWKS_PATH, counted(self.jwks), methods=["GET"]))
        return routes

    async def logout(self, request: Request) -> Response:
        """OpenID Connect Back-Channel Logout 1.0, sections 2.5 to 2.8."""
        receiver = self._receiver(request)
        try:
            await receiver.take(await self._token_of_form(request), "logout-token")
        except EventTokenRefused as refusal:
            return JSONResponse({"error": "invalid_request", "error_description": str(refusal)}, 400)
        return Response(status_code=200)

    async def event(self, request: Request) -> Response:
        """Push delivery of a security event token (RFC 8935, sections 2.2 to 2.4)."""
        receiver = self._receiver(request)
        try:
            await receiver.take(await self._token_of_body(request), "security-event")
        except EventTokenRefused as refusal:
            words = {"err": refusal.err, "description": str(refusal)}
            return JSONResponse(words, 400, {"Content-Language": "en"})
        return Response(status_code=202)

    async def configuration(self, request: Request) -> Response:
        """OpenID Shared Signals Framework 1.0, section 7.1."""
        assert self._sender is not None
        return JSONResponse(configuration_of(self._sender.transmitter))

    async def jwks(self, request: Request) -> Response:
        """The keys that ours are verified with (RFC 7517)."""
        assert self._sender is not None
        return JSONResponse({"keys": self._sender.signer.jwks})

    def _receiver(self, request: Request) -> SignalReceiver:
        found = self._receivers.get(request.path_params["provider"])
        if found is None:
            raise RequestRefused(404, "no-such-page", "no provider of this name may send signals")
        return found

    async def _token_of_form(self, request: Request) -> str:
        _demand_type(request, FORM)
        body = await read_bytes(request, MAX_BODY_BYTES)
        try:
            fields = parse_qs(body.decode("ascii"), strict_parsing=True, max_num_fields=MAX_FIELDS)
        except (ValueError, UnicodeDecodeError):
            raise EventTokenRefused("invalid_request", "the body is no form") from None
        tokens = fields.get("logout_token", [])
        if len(tokens) != 1:
            raise EventTokenRefused("invalid_request", "one logout_token is needed")
        return tokens[0]

    async def _token_of_body(self, request: Request) -> str:
        _demand_type(request, EVENT)
        try:
            return (await read_bytes(request, MAX_BODY_BYTES)).decode("ascii")
        except UnicodeDecodeError:
            raise EventTokenRefused("invalid_request", "the body is no token") from None


def _demand_type(request: Request, wanted: str) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != wanted or request.headers.get("content-encoding", "identity") != "identity":
        raise EventTokenRefused("invalid_request", f"send {wanted}, not compressed")
