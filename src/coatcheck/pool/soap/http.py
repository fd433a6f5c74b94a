"""SOAP over HTTP, as whoever answers it has it: the request's body, bounded, and answers with faults in them."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from coatcheck.pool.soap.envelope import version_sent
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion
from coatcheck.service_kit.endpoint import read_bytes
from coatcheck.service_kit.problems import RequestRefused

_REASONS: Final = {"too-large": FaultReason.TOO_LARGE, "too-slow": FaultReason.TOO_SLOW}


def version_asked(request: Request) -> SoapVersion:
    """The version to answer in, whatever else is wrong with a request."""
    return version_sent(request.headers.get("content-type", "")) or SOAP_11


async def read_soap_body(request: Request, limit: int) -> bytes:
    """The body of a POST, not compressed. Raises :class:`SoapFault`."""
    if request.method != "POST":
        raise SoapFault(FaultReason.WRONG_METHOD, "send SOAP by POST; the WSDL is at ?wsdl")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise SoapFault(FaultReason.WRONG_CONTENT_TYPE, "a compressed request is refused")
    return await read_limited(request, limit)


async def read_limited(request: Request, limit: int) -> bytes:
    """At most ``limit`` bytes. Raises :class:`SoapFault` for more, and for a sender that is too slow."""
    try:
        return await read_bytes(request, limit)
    except RequestRefused as refusal:
        raise SoapFault(_REASONS.get(refusal.name, FaultReason.MALFORMED), refusal.detail) from None


def soap_response(content: bytes, status: int, version: SoapVersion, fault: SoapFault | None = None) -> Response:
    """An envelope as an answer; ``fault``: what it refuses with."""
    headers = {}
    if fault is not None and fault.reason is FaultReason.WRONG_METHOD:
        headers["Allow"] = "GET, POST"
    if fault is not None and fault.reason in (FaultReason.TOO_LARGE, FaultReason.TOO_SLOW):
        headers["Connection"] = "close"
    return Response(content, status, headers, media_type=version.content_type)
