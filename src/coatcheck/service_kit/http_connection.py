"""How long the peer of an HTTP connection may keep it without doing anything.

uvicorn waits for ever for a peer that sends no whole head, or that reads no answer; as many of those as there may be
connections would shut everybody else out. Its ``Config`` takes any :class:`asyncio.Protocol` as ``http``; ours stands
between the transport and uvicorn's own, and passes everything on. What it cannot see from there (whether a request is
under way) it is told by :class:`KnowsItsConnection` around the app, through the state that ASGI gives each request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HEAD_TIMEOUT_S: Final = 10.0
"""From the connection, or the first byte of a further request, to the end of the request's head."""
SEND_TIMEOUT_S: Final = 30.0
"""For a peer that does not read its answer."""
STATE_KEY: Final = "coatcheck.connection"


class BoundedConnection(asyncio.Protocol):
    """Gives up peers that send no whole head, or read no answer. ``inner``: what speaks HTTP."""

    def __init__(self, inner: Callable[..., asyncio.Protocol], **made_for: Any) -> None:
        state = {**made_for.pop("app_state", {}), STATE_KEY: self}
        self._inner = inner(app_state=state, **made_for)
        self._transport: asyncio.Transport
        self._patience: asyncio.TimerHandle | None = None
        self._under_way = 0
        self.certificate: bytes | None = None
        """The peer's, verified, in DER; ``None``: it showed none."""

    # -- from the transport ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
        self._transport = transport  # type: ignore[assignment]
        _bound_what_is_sent(transport)
        if (tls := transport.get_extra_info("ssl_object")) is not None:
            self.certificate = tls.getpeercert(binary_form=True)
        self._inner.connection_made(transport)
        self._give(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if not self._under_way and self._patience is None:
            self._give(HEAD_TIMEOUT_S)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_back()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._take_back()
        self._give(SEND_TIMEOUT_S)

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        self._take_back()

    # -- from the app ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A request's head is whole."""
        self._under_way += 1
        self._take_back()

    def end(self) -> None:
        """Its answer was given."""
        self._under_way -= 1

    def _give(self, patience_s: float) -> None:
        self._patience = asyncio.get_running_loop().call_later(patience_s, self._transport.abort)

    def _take_back(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _bound_what_is_sent(transport: asyncio.BaseTransport) -> None:
    """What is left when the connection is closed may be too little to pause anybody: the kernel bounds it (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(SEND_TIMEOUT_S * 1000))


class KnowsItsConnection:
    """Around an app: tells each request's connection when it begins and when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        if connection is None:
            await self._app(scope, receive, send)
            return
        connection.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end()


def connection_of(scope: Scope) -> BoundedConnection | None:
    """The connection of a request; ``None`` where another server runs the app."""
    found = scope.get("state", {}).get(STATE_KEY)
    return found if isinstance(found, BoundedConnection) else None
