"""One request to a SOAP service: bounded in time and size, and sure about what may have been carried out."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx

from coatcheck.pool.soap.envelope import Envelope, EnvelopeLimits, read_envelope
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.versions import SOAP_11, SoapVersion

ANSWER_LIMITS: Final = EnvelopeLimits(body_bytes=8 * 1024 * 1024, depth=128, elements=500_000, headers=64)
CONNECT_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 1000


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """``envelope``: ``None`` for an answer without a body, which one-way operations have."""

    status: int
    envelope: Envelope | None = field(repr=False)


class SoapUpstream:
    """The service at ``url``. ``timeout_s``: for a whole request. ``tls``: whom to trust; else the system's."""

    def __init__(self, url: str, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            verify=tls or ssl.create_default_context(),
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            # A cookie of one session must not go out with another's token, and a proxy of the environment sees tokens.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
            headers={"User-Agent": "coatcheck", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def post(self, version: SoapVersion, content: bytes, action: str) -> UpstreamAnswer:
        """Send an envelope.

        Raises:
            SoapFault: ``UpstreamUnreachable``: nothing was sent; ``UpstreamLost``, ``BadAnswer``: it may have been
                carried out.
        """
        headers = {"Content-Type": version.content_type}
        if version is SOAP_11:
            headers["SOAPAction"] = f'"{action}"'
        elif action:
            headers["Content-Type"] += f'; action="{action}"'
        request = self._client.build_request("POST", self.url, content=content, headers=headers)
        status, content_type, body = await self._send(request)
        if not body.strip() and 200 <= status < 300:
            return UpstreamAnswer(status, None)
        try:
            return UpstreamAnswer(status, read_envelope(body, content_type, ANSWER_LIMITS))
        except SoapFault as fault:
            raise SoapFault(FaultReason.BAD_ANSWER, f"the upstream answered {status}: {fault.message}") from None

    async def get(self, query: str) -> bytes:
        """What it says about itself. Raises :class:`SoapFault`."""
        request = self._client.build_request("GET", f"{self.url.partition('?')[0]}?{query}")
        status, _, body = await self._send(request)
        if status != 200:
            raise SoapFault(FaultReason.BAD_ANSWER, f"the upstream answered {status}")
        return body

    async def _send(self, request: httpx.Request) -> tuple[int, str, bytes]:
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    return response.status_code, response.headers.get("content-type", ""), await _body_of(response)
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as error:
            said = f"the upstream cannot be reached: {type(error).__name__}; nothing was sent"
            raise SoapFault(FaultReason.UPSTREAM_UNREACHABLE, said) from None
        except (httpx.HTTPError, TimeoutError) as error:
            said = f"the upstream did not answer: {type(error).__name__}; the request may have been carried out"
            raise SoapFault(FaultReason.UPSTREAM_LOST, said) from None


async def _body_of(response: httpx.Response) -> bytes:
    """As it was sent. Raises :class:`SoapFault`."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise SoapFault(FaultReason.BAD_ANSWER, "the upstream's answer is compressed, which it was asked not to do")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > ANSWER_LIMITS.body_bytes:
            said = f"the upstream answered more than {ANSWER_LIMITS.body_bytes} bytes"
            raise SoapFault(FaultReason.BAD_ANSWER, said)
    return bytes(body)
