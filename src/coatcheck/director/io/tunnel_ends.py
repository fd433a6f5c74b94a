"""The two sockets of a tunnel: what one reports goes to the tunnel's rules, and what they ask for is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from coatcheck.director.io.client_wire import ClientWire
from coatcheck.director.io.relay import Relay
from coatcheck.director.rules.actions import ToClient, ToServer, TunnelOrder, TunnelSide
from coatcheck.director.rules.tunnel import Tunnel


class TunnelEnds:
    """The shell around one :class:`~coatcheck.director.rules.tunnel.Tunnel`."""

    __slots__ = ("_client", "_performing", "_relay", "_server", "_wire", "tunnel")

    def __init__(self, relay: Relay, tunnel: Tunnel, wire: ClientWire, server: asyncio.Transport) -> None:
        self._relay = relay
        self.tunnel = tunnel
        self._wire = wire
        self._client = client = wire.transport
        self._server = server
        self._performing = False
        relay.performers[tunnel] = self.perform
        for side, transport in ((TunnelSide.CLIENT, client), (TunnelSide.SERVER, server)):
            transport.set_protocol(_TunnelEnd(self, side))

    def perform(self) -> None:
        """Carry out what the tunnel asks for."""
        if self._performing:
            return
        self._performing = True
        actions = self.tunnel.actions
        try:
            # What is asked for meanwhile is appended, and so comes last.
            for action in actions:
                if isinstance(action, ToServer):
                    _write(self._server, action.data)
                elif isinstance(action, ToClient):
                    _write(self._client, action.data)
                elif action.side is TunnelSide.CLIENT and action.order is TunnelOrder.CLOSE:
                    self._wire.close()
                else:
                    _ORDERS[action.order](self._client if action.side is TunnelSide.CLIENT else self._server)
        finally:
            actions.clear()
            self._performing = False

    def ended(self, side: TunnelSide) -> None:
        """One connection is gone."""
        self.tunnel.lost(side)
        self.perform()
        if self.tunnel.is_over:
            del self._relay.performers[self.tunnel]


class _TunnelEnd(asyncio.Protocol):
    """One of the two connections."""

    __slots__ = ("_ends", "_side", "_tunnel")

    def __init__(self, ends: TunnelEnds, side: TunnelSide) -> None:
        self._ends = ends
        self._side = side
        self._tunnel = ends.tunnel

    def data_received(self, data: bytes) -> None:
        self._tunnel.came(self._side, data)
        self._ends.perform()

    def pause_writing(self) -> None:
        self._tunnel.full(self._side)
        self._ends.perform()

    def resume_writing(self) -> None:
        self._tunnel.ready(self._side)
        self._ends.perform()

    def eof_received(self) -> bool:
        # Whether it stays open is for the tunnel to say.
        self._tunnel.ended(self._side)
        self._ends.perform()
        return self._tunnel.can_half_close

    def connection_lost(self, error: Exception | None) -> None:
        self._ends.ended(self._side)


def _write(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():
        transport.write(data)


def _pause(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.pause_reading()


def _resume(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()


def _end(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.write_eof()


_ORDERS: Final[dict[TunnelOrder, Callable[[asyncio.Transport], None]]] = {
    TunnelOrder.PAUSE: _pause,
    TunnelOrder.RESUME: _resume,
    TunnelOrder.END: _end,
    TunnelOrder.CLOSE: lambda transport: transport.close(),
    TunnelOrder.ABORT: lambda transport: transport.abort(),
}
