"""A client's socket and whichever web server has its durable WebSocket: what they report goes to the rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from coatcheck.director.io.client_shell import SHELL_ORDERS, ClientShell
from coatcheck.director.io.client_wire import ClientWire
from coatcheck.director.io.relay import Relay
from coatcheck.director.io.server_link import ServerLink
from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.durable_socket import DurableSocket


class DurableEnds(ClientShell):
    """The shell around one :class:`~coatcheck.director.rules.durable_socket.DurableSocket`."""

    __slots__ = ("_performing", "_relay", "_wire", "machine")

    def __init__(self, relay: Relay, machine: DurableSocket, wire: ClientWire, link: ServerLink) -> None:
        """``link``: to the web server that has agreed."""
        super().__init__()
        self._relay = relay
        self.machine = machine
        self._wire = wire
        self.transport = wire.transport
        self._link = link
        self._performing = False
        link.owner = self
        relay.performers[machine] = self.perform
        self.transport.set_protocol(self)

    # The client

    def data_received(self, data: bytes) -> None:
        self.machine.client_bytes(data)
        self.perform()

    def eof_received(self) -> bool:
        # Without a close frame that is the end of both directions.
        self.machine.client_eof()
        self.perform()
        return self.transport.can_write_eof()

    def connection_lost(self, error: Exception | None) -> None:
        self.machine.client_lost()
        self.perform()

    def pause_writing(self) -> None:
        self.machine.client_full()
        self.perform()

    def resume_writing(self) -> None:
        self.machine.client_ready()
        self.perform()

    # The web server

    def attach(self, link: ServerLink, *, reused: bool) -> None:
        """A connection to a web server was had."""
        self._link = link
        link.owner = self
        self.machine.connected(reused=reused, full=link.is_full)

    def perform(self) -> None:
        """Carry out what the machine asks for."""
        if self._performing:
            return
        self._performing = True
        actions = self.machine.actions
        try:
            # What is asked for meanwhile is appended, and so comes last.
            for action in actions:
                if isinstance(action, ToClient):
                    if not self.transport.is_closing():
                        self.transport.write(action.data)
                elif isinstance(action, ToServer):
                    if self._link is not None and not self._link.transport.is_closing():
                        self._link.transport.write(action.data)
                else:
                    _PERFORM[type(action)](self, action)
        except BaseException:
            self.transport.abort()
            raise
        finally:
            actions.clear()
            self._performing = False
        if self.machine.is_over:
            self._relay.performers.pop(self.machine, None)
        if self._relay.traffic.actions:
            self._relay.flush()

    def _reach(self, action: Reach) -> None:
        self.connecting = self._relay.connect(self._relay.pools[action.server.index], self)

    def _release_server(self, action: ReleaseServer) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.owner = None
            link.transport.close()

    def _close_client(self) -> None:
        self._wire.close()

    def _order(self, order: Order) -> None:
        _ORDERS[order](self)


_PERFORM: Final[dict[type, Callable[[DurableEnds, Any], None]]] = {
    Reach: DurableEnds._reach,
    ReleaseServer: DurableEnds._release_server,
    Order: DurableEnds._order,
}
_ORDERS: Final[dict[Order, Callable[[DurableEnds], None]]] = {
    **SHELL_ORDERS,
    Order.CLOSE_CLIENT: DurableEnds._close_client,
}
