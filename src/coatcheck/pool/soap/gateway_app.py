"""The gateway's HTTP endpoint: who may call, envelopes in and out, the WSDL with the gateway's address."""

from __future__ import annotations

import contextlib
import logging
import math
from base64 import b64decode
from binascii import Error as BinasciiError
from collections.abc import AsyncIterator, Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coatcheck.pool import AsyncTokenPool, LoginRateLimited
from coatcheck.pool.audit import now_calling_as
from coatcheck.pool.soap.envelope import add_fault, open_envelope, read_envelope, read_xml, serialised
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.gateway import CALL_LIMITS, GATEWAY_NS, SoapCall, SoapGateway
from coatcheck.pool.soap.http import read_soap_body, soap_response, version_asked
from coatcheck.pool.soap.upstream import ANSWER_LIMITS, SoapUpstream
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion
from coatcheck.service_kit.bearer import BearerTokens, bearer_name, shown_bearer

MAX_ACTION_CHARS: Final = 1024
STOP_GRACE_S: Final = 2.0
DESCRIPTIONS: Final = frozenset({"wsdl", "singlewsdl", "xsd"})
"""What the first name in the query of a GET may be."""
METHODS: Final = ["GET", "POST", "PUT", "DELETE", "PATCH"]
_ADDRESSES: Final = (
    "{http://schemas.xmlsoap.org/wsdl/soap/}address",
    "{http://schemas.xmlsoap.org/wsdl/soap12/}address",
)

log: Final = logging.getLogger(__name__)


def gateway_app(
    open_gateway: Callable[[], tuple[AsyncTokenPool, SoapGateway]],
    upstream: SoapUpstream,
    callers: BearerTokens,
    public_url: str | None = None,
) -> Starlette:
    """The gateway as an ASGI app. ``open_gateway`` is called in the loop that serves; its pool is closed at the end."""
    endpoint = GatewayEndpoint(upstream, callers, public_url)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        pool, endpoint.gateway = open_gateway()
        try:
            yield
        finally:
            await pool.close(STOP_GRACE_S)
            await upstream.close()

    routes = [
        Route("/healthz", healthy, methods=["GET"]),
        # Clients that were told another host alone keep the upstream's path.
        Route("/{path:path}", endpoint.answer, methods=METHODS),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class GatewayEndpoint:
    """POST is a call, GET the upstream's WSDL or schemas."""

    gateway: SoapGateway

    def __init__(self, upstream: SoapUpstream, callers: BearerTokens, public_url: str | None) -> None:
        self._upstream = upstream
        self._callers = callers
        self._public_url = public_url

    async def answer(self, request: Request) -> Response:
        version = version_asked(request)
        try:
            caller = _shown(request.headers.get("authorization", ""))
            if caller is None or not self._callers.accept(caller):
                raise SoapFault(FaultReason.UNAUTHORIZED, "send a bearer token, or it as the password of Basic")
            now_calling_as(bearer_name(caller))
            if request.method == "GET" and _asks_for_description(request):
                return await self._describe(request)
            return await self._call(request)
        except SoapFault as fault:
            return _refused(fault, version)
        except Exception:
            log.exception("a request broke the gateway")
            return _refused(SoapFault(FaultReason.INTERNAL, "the gateway failed; its log has the reason"), version)

    async def _call(self, request: Request) -> Response:
        body = await read_soap_body(request, CALL_LIMITS.body_bytes)
        envelope = read_envelope(body, request.headers.get("content-type", ""), CALL_LIMITS)
        action = request.headers.get("soapaction", "") if envelope.version is SOAP_11 else envelope.action
        answer = await self.gateway.call(SoapCall(envelope, _checked_action(action)))
        if answer.envelope is None:
            return Response(status_code=answer.status)
        return soap_response(serialised(answer.envelope.root), answer.status, answer.envelope.version)

    async def _describe(self, request: Request) -> Response:
        body = await self._upstream.get(request.url.query)
        document = read_xml(body, None, ANSWER_LIMITS)
        address = self._public_url or f"{request.url.scheme}://{request.url.netloc}/"
        ours = urlsplit(self._upstream.url).path.rstrip("/")
        for each in document.iter(*_ADDRESSES):
            # The upstream may know itself by another host name; another path is another service.
            if urlsplit(each.get("location", "")).path.rstrip("/") == ours:
                each.set("location", address)
        return Response(serialised(document), media_type=SOAP_11.content_type)


def _asks_for_description(request: Request) -> bool:
    return request.url.query.partition("=")[0].partition("&")[0].lower() in DESCRIPTIONS


def _shown(authorization: str) -> str | None:
    """A bearer token; clients that can send a password alone send it as that (RFC 7617)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return shown_bearer(authorization)
    try:
        return b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (BinasciiError, ValueError):
        return None


def _checked_action(shown: str) -> str:
    action = shown.strip().removeprefix('"').removesuffix('"')
    if len(action) > MAX_ACTION_CHARS or not action.isascii() or not action.isprintable() or set(action) & set('"\\;'):
        raise SoapFault(FaultReason.MALFORMED, f"an action is an address of at most {MAX_ACTION_CHARS} characters")
    return action


def _refused(fault: SoapFault, version: SoapVersion) -> Response:
    envelope, body = open_envelope(version)
    add_fault(envelope, body, fault, GATEWAY_NS)
    response = soap_response(serialised(envelope), fault.reason.status(version), version, fault)
    if fault.reason is FaultReason.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer, Basic realm="coatcheck"'
    if isinstance(fault.__cause__, LoginRateLimited):
        response.headers["Retry-After"] = str(max(1, math.ceil(fault.__cause__.retry_after_s)))
    return response


async def healthy(request: Request) -> Response:
    """Whether it runs; the upstream is not asked."""
    return JSONResponse({"status": "ok"})
