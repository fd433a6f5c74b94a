"""A client's socket: what it reports goes to the machine of the connection, and what that asks for is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from coatcheck.director.io.client_shell import SHELL_ORDERS, ClientShell
from coatcheck.director.io.client_wire import ClientWire
from coatcheck.director.io.durable_ends import DurableEnds
from coatcheck.director.io.relay import Relay
from coatcheck.director.io.server_link import ServerLink
from coatcheck.director.io.tunnel_ends import TunnelEnds
from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.durable_socket import DurableSocket
from coatcheck.director.rules.forwarding import ClientAddress


class ClientLink(ClientShell):
    """The shell around one :class:`~coatcheck.director.rules.connection.ProxiedConnection`."""

    __slots__ = ("_beneath", "_guest", "_performing", "_relay", "_wire", "machine")

    def __init__(self, relay: Relay, guest: Guest | None = None, beneath: asyncio.Transport | None = None) -> None:
        """With TLS: ``guest``, as it was counted before its handshake, and the transport ``beneath``."""
        super().__init__()
        self._relay = relay
        self._guest = guest
        self._beneath = beneath
        self._performing = False
        self.machine = cast(ProxiedConnection, None)
        self._wire = cast(ClientWire, None)

    # Events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        relay = self._relay
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(relay.options.buffer_bytes)
        self._wire = ClientWire(relay.loop, self.transport, self._beneath)
        peername = transport.get_extra_info("peername")
        peer = peername[0] if isinstance(peername, tuple) else "unknown"
        address = ClientAddress(peer, tls=self._wire.is_tls, trusted=relay.traffic.trusted)
        self.machine = ProxiedConnection(
            relay.traffic, address, can_half_close=self.transport.can_write_eof(), guest=self._guest
        )
        relay.performers[self.machine] = self.perform
        relay.wires[self.machine] = self._wire
        self.machine.opened()
        self.perform()

    def data_received(self, data: bytes) -> None:
        self.machine.client_bytes(data)
        self.perform()

    def eof_received(self) -> bool:
        # Whether it stays open is for the machine to say; with TLS it cannot.
        self.machine.client_eof()
        self.perform()
        return self.transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.machine.client_lost()
        self.perform()
        self._forget()

    def pause_writing(self) -> None:
        self.machine.client_full(self._wire.unsent())
        self.perform()

    def resume_writing(self) -> None:
        self.machine.client_ready()
        self.perform()

    def _go_on(self) -> None:
        self.machine.go_on()
        self.perform()

    def _forget(self) -> None:
        del self._relay.performers[self.machine]
        del self._relay.wires[self.machine]

    # Actions

    def perform(self) -> None:
        """Carry out what the machine asks for."""
        if self._performing:
            return
        self._performing = True
        actions = self.machine.actions
        try:
            # What is asked for meanwhile is appended, and so comes last.
            for action in actions:
                # Not isinstance: of these classes it costs more than the rest of the round.
                if type(action) is ToServer:
                    assert self._link is not None
                    self._link.transport.write(action.data)
                elif type(action) is ToClient:
                    self.transport.write(action.data)
                else:
                    _PERFORM[type(action)](self, action)
        except BaseException:
            self.transport.abort()
            raise
        finally:
            actions.clear()
            self._performing = False
        if self._relay.traffic.actions:
            self._relay.flush()

    def _reach(self, action: Reach) -> None:
        pool = self._relay.pools[action.server.index]
        if action.fresh:
            link = None
        else:
            link = pool.take_quiet() if action.certain else pool.idle.take()
        if link is None:
            self.connecting = self._relay.connect(pool, self)
        else:
            self.attach(link, reused=True)

    def attach(self, link: ServerLink, *, reused: bool) -> None:
        """A connection to a web server was had."""
        self._link = link
        link.owner = self
        self.machine.connected(reused=reused, full=link.is_full)

    def _release_server(self, action: ReleaseServer) -> None:
        link, self._link = self._link, None
        assert link is not None
        link.owner = None
        if link.is_gone or not (action.keep and link.pool.idle.keep(link, self._relay.traffic.now)):
            link.transport.close()

    def _order(self, order: Order) -> None:
        _ORDERS[order](self)

    def _end_client(self) -> None:
        if not self.transport.is_closing():
            self.transport.write_eof()

    def _close_client(self) -> None:
        self._wire.close()

    def _ask_to_go_on(self) -> None:
        self._relay.loop.call_soon(self._go_on)

    def _join(self) -> None:
        link, self._link = self._link, None
        assert link is not None
        link.owner = None
        self._forget()
        joined = self.machine.join()
        if isinstance(joined, DurableSocket):
            DurableEnds(self._relay, joined, self._wire, link).perform()
        else:
            TunnelEnds(self._relay, joined, self._wire, link.transport).perform()


_PERFORM: Final[dict[type, Callable[[ClientLink, Any], None]]] = {
    Reach: ClientLink._reach,
    ReleaseServer: ClientLink._release_server,
    Order: ClientLink._order,
}
_ORDERS: Final[dict[Order, Callable[[ClientLink], None]]] = {
    **SHELL_ORDERS,
    Order.END_CLIENT: ClientLink._end_client,
    Order.CLOSE_CLIENT: ClientLink._close_client,
    Order.GO_ON: ClientLink._ask_to_go_on,
    Order.JOIN: ClientLink._join,
}
