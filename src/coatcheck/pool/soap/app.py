"""The provider's HTTP endpoint: WSDL, SOAP and the operator's switches (mission D8)."""

from __future__ import annotations

import asyncio
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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coatcheck.errors import ConfigError
from coatcheck.pool.soap.envelope import CONTENT_TYPE, MAX_BODY_BYTES, read_envelope
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.options import ProviderOptions
from coatcheck.pool.soap.provider import Provider, ProviderWorld

SOAP_PATH: Final = "/soap"
BODY_TIMEOUT_S: Final = 10.0
MAX_DISCARDED_BYTES: Final = 4 * 1024 * 1024
"""Read and thrown away of a body that is too large, so that its sender can read the fault."""
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
        try:
            if request.method != "POST":
                raise SoapFault(FaultReason.WRONG_METHOD, "send SOAP by POST; the WSDL is at ?wsdl")
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                raise SoapFault(FaultReason.WRONG_CONTENT_TYPE, "a compressed request is refused")
            body = await _read_body(request, MAX_BODY_BYTES)
            parsed = read_envelope(body, request.headers.get("content-type", ""))
        except SoapFault as fault:
            return self._refuse(fault)
        try:
            content, status = await self._provider.answer(parsed)
        except Exception:
            log.exception("a request broke the provider")
            return self._refuse(SoapFault(FaultReason.INTERNAL, "the provider failed; its log has the reason"))
        return Response(content, status, media_type=CONTENT_TYPE)

    def _refuse(self, fault: SoapFault) -> Response:
        content, status = self._provider.fault(fault)
        headers = {"Allow": "GET, POST"} if status == 405 else {}
        if fault.reason in (FaultReason.TOO_LARGE, FaultReason.TOO_SLOW):
            headers["Connection"] = "close"
        return Response(content, status, headers, media_type=CONTENT_TYPE)

    def _describe(self, request: Request) -> Response:
        address = self._public_url or f"{request.url.scheme}://{request.url.netloc}{SOAP_PATH}"
        text = self._wsdl.replace('"@address@"', quoteattr(address, {"\x00": ""}))
        return Response(text, media_type=CONTENT_TYPE)


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


async def _read_body(request: Request, limit: int) -> bytes:
    """At most ``limit`` bytes. Raises :class:`SoapFault` for more, and for a sender that is too slow."""
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    body.clear()
                    if received > MAX_DISCARDED_BYTES:
                        break
                else:
                    body += chunk
    except TimeoutError:
        raise SoapFault(FaultReason.TOO_SLOW, f"the request took longer than {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise SoapFault(FaultReason.MALFORMED, "the request ended too early") from None
    if received > limit:
        raise SoapFault(FaultReason.TOO_LARGE, f"the request is larger than {limit} bytes")
    return bytes(body)


async def _read_object(request: Request) -> dict[str, object]:
    try:
        return msgspec.json.decode(await _read_body(request, MAX_ADMIN_BYTES), type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError("a JSON object is needed") from None
