"""The one page that Prometheus asks for, as an ASGI app: GET of ``/metrics``, and nothing else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.metrics.exposition import exposition

PATH: Final = "/metrics"
MAX_ACCEPT_BYTES: Final = 1024
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class MetricsEndpoint:
    """Answers scrapes with what the farm says now.

    ``status`` asks the farm, and raises :class:`ControlError` if it does not answer; ``host`` is where we listen.
    """

    def __init__(self, status: Callable[[], Awaitable[Mapping[str, Any]]], host: str) -> None:
        self._status = status
        self._host = host.lower()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if not self._is_ours(headers.get(b"host", b"")):
            # A page of a stranger, whose name was made to lead here, must not read it in somebody's browser.
            await _answer(send, 400, "the Host is not one of this address\n")
        elif scope["path"] != PATH:
            await _answer(send, 404, f"only {PATH} is here\n")
        elif scope["method"] != "GET":
            await _answer(send, 405, "only GET\n", (b"allow", b"GET"))
        else:
            await self._scrape(headers.get(b"accept", b""), send)

    async def _scrape(self, accept: bytes, send: Send) -> None:
        try:
            status = await self._status()
        except ControlError as error:
            await _answer(send, 503, f"{error}\n")
            return
        content_type, text = exposition(status, accept[:MAX_ACCEPT_BYTES].decode("latin-1"))
        await _answer(send, 200, text, (b"content-type", content_type.encode()))

    def _is_ours(self, host: bytes) -> bool:
        """Whether it is an address, ``localhost`` or the name that we listen on: all others may be anybody's."""
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        if found is None:
            return False
        name = found["six"] or found["name"]
        if name in (self._host, "localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def _live(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _answer(send: Send, status: int, text: str | bytes, *more: tuple[bytes, bytes]) -> None:
    body = text.encode() if isinstance(text, str) else text
    headers = [
        *([] if any(name == b"content-type" for name, _ in more) else [(b"content-type", b"text/plain")]),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
