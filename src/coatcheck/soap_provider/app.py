"""The provider's HTTP endpoint: WSDL, SOAP and the operator's switches (mission D8)."""

from __future__ import annotations

import hmac
import logging
import os
import random
import time
from importlib import resources
from typing import Final
from xml.sax.saxutils import quoteattr

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coatcheck.errors import ConfigError
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.http import read_limited, read_soap_body, soap_response, version_asked
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion
from coatcheck.soap_provider.messages import LIMITS, read_request
from coatcheck.soap_provider.options import ProviderOptions
from coatcheck.soap_provider.provider import Provider, ProviderWorld

SOAP_PATH: Final = "/soap"
MAX_ADMIN_BYTES: Final = 16 * 1024

log = logging.getLogger(__name__)


def soap_app(
    options: ProviderOptions | None = None,
    *,
    admin_token: str | None = None,
    admin: bool = True,
    public_url: str | None = None,
) -> Starlette:
    """The provider as an ASGI app.

    ``admin``: serve ``/admin/...``, behind the bearer token ``admin_token`` if there is one. ``public_url``: the
    address in the WSDL; without it, the one that the client used.

    Raises:
        ConfigError: an option is wrong.
    """
    options = options or ProviderOptions()
    uniform = random.Random(options.seed).random
    provider = Provider(options, ProviderWorld(lambda: time.time_ns() // 1_000_000, os.urandom, uniform))
    endpoint = SoapEndpoint(provider, public_url)
    routes = [
        Route(SOAP_PATH, endpoint.soap, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
        Route("/", endpoint.soap, methods=["GET", "POST"]),
        Route("/healthz", healthy, methods=["GET"]),
    ]
    if admin:
        switches = AdminEndpoint(provider, admin_token)
        routes += [
            Route("/admin/stats", switches.stats, methods=["GET"]),
            Route("/admin/misbehave", switches.misbehave, methods=["POST"]),
            Route("/admin/expire-tokens", switches.expire_tokens, methods=["POST"]),
            Route("/admin/kill-sessions", switches.kill_sessions, methods=["POST"]),
        ]
    app = Starlette(routes=routes)
    app.state.provider = provider
    return app


class SoapEndpoint:
    """POST is SOAP, GET is the WSDL."""

    def __init__(self, provider: Provider, public_url: str | None) -> None:
        self._provider = provider
        self._public_url = public_url
        self._wsdl = (resources.files(__package__) / "provider.wsdl").read_text("utf-8")

    async def soap(self, request: Request) -> Response:
        if request.method == "GET" and "wsdl" in {name.lower() for name in request.query_params}:
            return self._describe(request)
        version = version_asked(request)
        try:
            body = await read_soap_body(request, LIMITS.body_bytes)
            parsed = read_request(body, request.headers.get("content-type", ""))
        except SoapFault as fault:
            return self._refuse(fault, version)
        try:
            content, status = await self._provider.answer(parsed)
        except Exception:
            log.exception("a request broke the provider")
            return self._refuse(SoapFault(FaultReason.INTERNAL, "the provider failed; its log has the reason"), version)
        return soap_response(content, status, version)

    def _refuse(self, fault: SoapFault, version: SoapVersion) -> Response:
        content, status = self._provider.fault(fault, version)
        return soap_response(content, status, version, fault)

    def _describe(self, request: Request) -> Response:
        address = self._public_url or f"{request.url.scheme}://{request.url.netloc}{SOAP_PATH}"
        text = self._wsdl.replace('"@address@"', quoteattr(address, {"\x00": ""}))
        return Response(text, media_type=SOAP_11.content_type)


class AdminEndpoint:
    """The operator's switches: what goes wrong, and since when."""

    def __init__(self, provider: Provider, token: str | None) -> None:
        self._provider = provider
        self._token = token

    async def stats(self, request: Request) -> Response:
        return self._denied(request) or JSONResponse(self._provider.stats())

    async def misbehave(self, request: Request) -> Response:
        """Change fields of the misbehaviour; answers all of it."""
        denied = self._denied(request)
        if denied is not None:
            return denied
        try:
            changes = await _read_object(request)
            self._provider.misbehaviour = self._provider.misbehaviour.changed(changes)
        except (ConfigError, SoapFault) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(msgspec.structs.asdict(self._provider.misbehaviour))

    async def expire_tokens(self, request: Request) -> Response:
        denied = self._denied(request)
        if denied is None:
            self._provider.expire_tokens(request.query_params.get("user"))
        return denied or JSONResponse({"expired": True})

    async def kill_sessions(self, request: Request) -> Response:
        denied = self._denied(request)
        if denied is not None:
            return denied
        return JSONResponse({"killed": self._provider.kill_sessions(request.query_params.get("user"))})

    def _denied(self, request: Request) -> Response | None:
        if self._token is None:
            return None
        shown = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(shown, f"Bearer {self._token}".encode()):
            return None
        return JSONResponse({"error": "the admin token is missing or wrong"}, 401, {"WWW-Authenticate": "Bearer"})


async def healthy(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _read_object(request: Request) -> dict[str, object]:
    try:
        return msgspec.json.decode(await read_limited(request, MAX_ADMIN_BYTES), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError("a JSON object is needed") from None
