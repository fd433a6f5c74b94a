"""The host of a browser: HTTP/1.1 over connections that are kept, and what becomes of each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import h11
import msgspec

from coatcheck.simulation.world.machine import Machine

MOST_KEPT: Final = 6
"""Connections that wait for the next request."""

Header = tuple[bytes, bytes]


class BrowserRequest(msgspec.Struct, eq=False):
    """A request: what is sent, piece by piece with so many seconds after each, and who is told of its end."""

    method: bytes
    headers: list[Header]
    pieces: list[tuple[bytes, float]]
    end: Callable[[WholeAnswer | None, str], None]
    """Gets the answer, or why there is none."""


class WholeAnswer(msgspec.Struct):
    """A whole answer."""

    status: int
    headers: list[Header]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.headers if known == name]


class BrowserHost:
    """Sends requests to one address; no connection carries two at once."""

    def __init__(self, machine: Machine, address: str, port: int) -> None:
        self.machine = machine
        self._address = address
        self._port = port
        self._unused: list[_BrowserLink] = []

    def ask(self, asked: BrowserRequest) -> Callable[[], None]:
        """Send a request; answers what hangs up on it."""
        request = _Sending(asked)
        self.machine.call(self._ask, request)
        return lambda: self.machine.call(request.hang_up)

    def _ask(self, request: _Sending) -> None:
        while self._unused:
            visit = self._unused.pop()
            if not visit.transport.is_closing():
                visit.send(request)
                return
        request.connecting = self.machine.loop.create_task(self._connect(request))

    async def _connect(self, request: _Sending) -> None:
        try:
            _, visit = await self.machine.loop.create_connection(
                lambda: _BrowserLink(self.machine.loop, self._unused), self._address, self._port
            )
        except OSError as error:
            request.end(None, f"no connection: {error}")
            return
        request.connecting = None
        visit.send(request)


class _Sending:
    """A request on its way."""

    def __init__(self, asked: BrowserRequest) -> None:
        self.asked = asked
        self.connecting: asyncio.Task[None] | None = None
        self.visit: _BrowserLink | None = None
        self._is_over = False

    def end(self, told: WholeAnswer | None, why: str) -> None:
        if not self._is_over:
            self._is_over = True
            self.asked.end(told, why)

    def hang_up(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self.connecting is not None:
            self.connecting.cancel()
        if self.visit is not None:
            self.visit.transport.abort()


class _BrowserLink(asyncio.Protocol):
    """One connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, unused: list[_BrowserLink]) -> None:
        self._loop = loop
        self._unused = unused
        self._http = h11.Connection(h11.CLIENT)
        self._request: _Sending | None = None
        self._pieces: list[tuple[bytes, float]] = []
        self._response: h11.Response | None = None
        self._body = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: _Sending) -> None:
        """Begin a request; its body follows at its own pace."""
        self._request = request
        request.visit = self
        asked = request.asked
        self._response, self._body = None, bytearray()
        self._pieces = list(asked.pieces)
        head = self._http.send(h11.Request(method=asked.method, target=b"/", headers=asked.headers))
        assert head is not None
        self.transport.write(head)
        self._go_on()

    def _go_on(self) -> None:
        if self.transport.is_closing() or self._http.our_state is not h11.SEND_BODY:
            return
        if not self._pieces:
            self.transport.write(self._http.send(h11.EndOfMessage()) or b"")
            return
        piece, pause_s = self._pieces.pop(0)
        self.transport.write(self._http.send(h11.Data(data=piece)) or b"")
        if pause_s:
            self._loop.call_later(pause_s, self._go_on)
        else:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def eof_received(self) -> None:
        self._take(b"")

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._unused:
            self._unused.remove(self)
        self._end(None, f"the connection was lost: {error}")

    def _take(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            while True:
                event: Any = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
                self._note(event)
        except h11.RemoteProtocolError as error:
            self._end(None, f"the answer is not whole, or no HTTP: {error}")
            self.transport.abort()

    def _note(self, event: Any) -> None:
        if isinstance(event, h11.Response):
            self._response = event
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif isinstance(event, h11.EndOfMessage):
            self._whole()

    def _whole(self) -> None:
        response = self._response
        assert response is not None
        keeps = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if keeps and len(self._unused) < MOST_KEPT and not self.transport.is_closing():
            self._http.start_next_cycle()
            self._unused.append(self)
        else:
            self.transport.close()
        self._end(WholeAnswer(response.status_code, list(response.headers), bytes(self._body)), "")

    def _end(self, told: WholeAnswer | None, why: str) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.end(told, why)
