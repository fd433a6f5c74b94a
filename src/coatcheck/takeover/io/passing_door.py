"""The director's entrance where web servers end TLS themselves: connections are passed on, record by record."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from coatcheck.director.io.acceptor import Acceptor, let_in
from coatcheck.director.io.client_shell import SHELL_ORDERS, ClientShell
from coatcheck.director.io.client_wire import ClientWire
from coatcheck.director.io.relay import Relay
from coatcheck.director.io.server_link import ServerLink
from coatcheck.director.rules.actions import Order, Reach, ToClient, ToServer
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.routing import ServerState
from coatcheck.takeover.rules.passing import PassedConnection
from coatcheck.takeover.rules.passing_state import Addresses


class PassingDoor:
    """Accepts on a listening socket, and passes every connection to a web server."""

    def __init__(self, relay: Relay, listener: socket.socket, max_kept_bytes: int) -> None:
        """``max_kept_bytes``: of each client's unanswered records."""
        self._relay = relay
        self._max_kept_bytes = max_kept_bytes
        listener.setblocking(False)
        self._acceptor = Acceptor(relay, listener, self._take)
        self._tasks: set[asyncio.Task[object]] = set()
        self._counts: Counter[str] = Counter()

    def open(self) -> None:
        """Begin to accept."""
        self._acceptor.open()

    def close(self) -> None:
        """Accept no more; web servers end connections, each as soon as nothing is under way on it."""
        self._acceptor.close()
        relay = self._relay
        for member in list(relay.traffic.connections):
            cast(PassedConnection, member).end_when_idle()
            relay.performers[member]()

    def abort(self) -> None:
        """End what has not come in yet."""
        for task in self._tasks:
            task.cancel()

    def draining(self, server: ServerState) -> None:
        """Its connections go to other web servers, each as soon as nothing is under way on it."""
        relay = self._relay
        for member in list(relay.traffic.connections):
            if member.server is server:
                cast(PassedConnection, member).draining()
                relay.performers[member]()

    def status(self) -> dict[str, int]:
        """What became of connections whose web server went away."""
        return {"taken_over": self._counts["resume"], "moved": self._counts["moved"], "broken_off": self._broken_off()}

    def _broken_off(self) -> int:
        return sum(self._counts.values()) - sum(self._counts[good] for good in ("resume", "moved", "begin_anew"))

    def _take(self, sock: socket.socket, peer: str) -> None:
        guest = let_in(self._relay, sock, peer)
        if guest is None:
            return
        task: asyncio.Task[object] = self._relay.loop.create_task(self._enter(sock, guest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enter(self, sock: socket.socket, guest: Guest) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            addresses = Addresses(sock.getpeername()[:2], sock.getsockname()[:2])
            machine = PassedConnection(self._relay.traffic, guest, addresses, self._max_kept_bytes, self._counts)
            await self._relay.loop.connect_accepted_socket(lambda: PassedClient(self._relay, machine), sock)
        except OSError:
            # The client has gone already.
            guest.leave()
            sock.close()
        except BaseException:
            guest.leave()
            sock.close()
            raise


class PassedClient(ClientShell):
    """The shell around one :class:`~coatcheck.takeover.rules.passing.PassedConnection`."""

    def __init__(self, relay: Relay, machine: PassedConnection) -> None:
        super().__init__()
        self._relay = relay
        self.machine = machine
        self._performing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        relay = self._relay
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(relay.options.buffer_bytes)
        relay.performers[self.machine] = self.perform
        relay.wires[self.machine] = ClientWire(relay.loop, self.transport, None)
        self.machine.opened()
        self.perform()

    def data_received(self, data: bytes) -> None:
        self.machine.client_bytes(data)
        self.perform()

    def connection_lost(self, error: Exception | None) -> None:
        self.machine.client_lost()
        self.perform()
        del self._relay.performers[self.machine]
        del self._relay.wires[self.machine]

    def pause_writing(self) -> None:
        self.machine.client_full(self.transport.get_write_buffer_size())
        self.perform()

    def resume_writing(self) -> None:
        self.machine.client_ready()
        self.perform()

    def attach(self, link: ServerLink, *, reused: bool) -> None:
        """A link to a web server was had."""
        self._link = link
        link.owner = self
        link.reads_to_the_end = True
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
                if isinstance(action, ToServer):
                    assert self._link is not None
                    self._link.transport.write(action.data)
                elif isinstance(action, ToClient):
                    self.transport.write(action.data)
                elif isinstance(action, Reach):
                    self.connecting = self._relay.connect(self._relay.pools[action.server.index], self)
                else:
                    _ORDERS[cast(Order, action)](self)
        except BaseException:
            self.transport.abort()
            raise
        finally:
            actions.clear()
            self._performing = False
        if self._relay.traffic.actions:
            self._relay.flush()

    def _end_server(self) -> None:
        if self._link is not None:
            self._link.server_died()

    def _close_client(self) -> None:
        self.transport.close()


_ORDERS: Final[dict[Order, Callable[[PassedClient], None]]] = {
    **SHELL_ORDERS,
    Order.END_SERVER: PassedClient._end_server,
    Order.CLOSE_CLIENT: PassedClient._close_client,
}
