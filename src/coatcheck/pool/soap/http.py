"""SOAP over HTTP, as whoever answers it has it: the request's body, bounded, and answers with faults in them."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from coatcheck.pool.soap.envelope import version_sent
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion

BODY_TIMEOUT_S: Final = 10.0
MAX_DISCARDED_BYTES: Final = 4 * 1024 * 1024
"""Read and thrown away of a body that is too large, so that its sender can read the fault."""


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


def soap_response(content: bytes, status: int, version: SoapVersion, fault: SoapFault | None = None) -> Response:
    """An envelope as an answer; ``fault``: what it refuses with."""
    headers = {}
    if fault is not None and fault.reason is FaultReason.WRONG_METHOD:
        headers["Allow"] = "GET, POST"
    if fault is not None and fault.reason in (FaultReason.TOO_LARGE, FaultReason.TOO_SLOW):
        headers["Connection"] = "close"
    return Response(content, status, headers, media_type=version.content_type)
