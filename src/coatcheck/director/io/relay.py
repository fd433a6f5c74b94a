"""What the sockets of one director share: the pools, the connects under way, the tick, the log."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Callable
from typing import Final, Protocol, cast

from coatcheck.director.io.client_wire import ClientWire
from coatcheck.director.io.server_link import LinkOwner, ServerLink, ServerPool
from coatcheck.director.options import DirectorOptions
from coatcheck.director.rules.actions import CheckNow, CloseUnused, DropHandshake, HealthChanged
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.routing import Health, ServerState, servers_of
from coatcheck.director.rules.traffic import Attend, ConnectFault, JoinedMember, Member, Traffic
from coatcheck.peers.dial import open_connection
from coatcheck.seldom import Seldom

_log: Final = logging.getLogger("coatcheck.director")
OWN_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""Our own lack of descriptors or ports."""


class Droppable(Protocol):
    """A handshake that is not made on a socket."""

    def drop(self) -> None:
        """End it: there are too many."""
        ...


class Entrance(Protocol):
    """Where clients come in."""

    def open(self) -> None:
        """Begin to accept."""
        ...

    def close(self) -> None:
        """Accept no more."""
        ...

    def abort(self) -> None:
        """End what is still on its way in."""
        ...

    def draining(self, server: ServerState) -> None:
        """A web server is to have no more requests."""
        ...

    def status(self) -> dict[str, int]:
        """Counters of its own."""
        ...


class Relay:
    """The shell around one director's :class:`~coatcheck.director.rules.traffic.Traffic`."""

    def __init__(self, options: DirectorOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        states = servers_of((server.name, server.tag) for server in options.servers)
        self.traffic = Traffic(
            options,
            states,
            loop.time(),
            max_connections=within_descriptors(
                options.max_connections, options.reserved_descriptors, options.descriptors_per_connection
            ),
            tls=options.tls is not None,
            clock=loop.time,
        )
        self.pools = [
            ServerPool(self.traffic, self.flush, server, state)
            for server, state in zip(options.servers, states, strict=True)
        ]
        self.seldom = Seldom(_log, loop.time)
        self.performers: dict[Member | JoinedMember, Callable[[], None]] = {}
        """What carries out the actions of each connection and each tunnel."""
        self.wires: dict[Member, ClientWire] = {}
        self.nudge: Callable[[ServerState], None] = lambda server: None
        """Asks for a health check of a server now."""
        self._connects: set[asyncio.Task[None]] = set()
        self._flushing = False

    def flush(self) -> None:
        """Carry out what the traffic asks for."""
        if self._flushing:
            return
        self._flushing = True
        actions = self.traffic.actions
        taken = 0
        try:
            # What is asked for meanwhile is appended, and so comes last.
            for action in actions:
                taken += 1
                if isinstance(action, Attend):
                    self.performers[action.member]()
                elif isinstance(action, CheckNow):
                    self.nudge(action.server)
                elif isinstance(action, CloseUnused):
                    for pool in self.pools if action.server is None else [self.pools[action.server.index]]:
                        pool.close_unused()
                elif isinstance(action, HealthChanged):
                    self._tell(action)
                else:
                    self._drop_handshake(action)
        finally:
            # If one has failed, the others' turn comes with the next event.
            del actions[:taken]
            self._flushing = False

    def _tell(self, changed: HealthChanged) -> None:
        name, health = changed.server.name, changed.health
        if health is Health.HEALTHY:
            self.seldom.write(logging.INFO, "web server %s is in: %s", name, changed.why, kind=f"{name} in")
        else:
            kind = f"{name} {health.value}"
            self.seldom.warning("web server %s is %s: %s", name, health.value, changed.why, kind=kind)

    def _drop_handshake(self, action: DropHandshake) -> None:
        handshake = action.handshake
        if not isinstance(handshake, socket.socket):
            cast(Droppable, handshake).drop()
            if isinstance(handshake, Member):
                self.performers[handshake]()
            return
        # The end of the stream ends the handshake.
        with contextlib.suppress(OSError):
            handshake.shutdown(socket.SHUT_RDWR)

    def connect(self, pool: ServerPool, owner: LinkOwner) -> asyncio.Task[None]:
        """Open a connection to a web server for a request; bounded by ``connect_timeout_s`` and the clients' number."""
        task = self.loop.create_task(self._connect(pool, owner))
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)
        return task

    async def _connect(self, pool: ServerPool, owner: LinkOwner) -> None:
        link = await self._opened(pool)
        if owner.connecting is not asyncio.current_task():
            # It was left meanwhile; another request may still have use for the connection.
            if isinstance(link, ServerLink):
                pool.keep(link)
        elif isinstance(link, Failure):
            owner.connecting = None
            owner.machine.not_connected(link)
        elif link.is_gone:
            owner.connecting = None
            owner.machine.not_connected(Failure.REFUSED)
        else:
            owner.connecting = None
            owner.attach(link, reused=False)
        owner.perform()

    async def _opened(self, pool: ServerPool) -> ServerLink | Failure:
        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                return await open_connection(pool.server.door, lambda: ServerLink(self.options, pool))
        except (TimeoutError, BlockingIOError):
            fault, why = ConnectFault.NOT_ACCEPTED, ""
        except OSError as error:
            fault, why = ConnectFault.REFUSED, str(error)
            if error.errno in OWN_SHORTAGES:
                fault = ConnectFault.OWN_SHORTAGE
                self.seldom.warning("no connection to a web server can be opened: %s", error.strerror)
        failure = self.traffic.connect_failed(pool.state, fault, why)
        self.flush()
        if fault is ConnectFault.OWN_SHORTAGE:
            # What was given back is ours only after a while.
            await asyncio.sleep(self.options.tick_s)
        return failure

    def tick(self, now: float) -> None:
        """Look at every deadline."""
        self.traffic.tick(now, self._unsent)
        self.flush()
        for pool in self.pools:
            pool.close_expired()

    def _unsent(self, member: Member) -> int:
        return self.wires[member].unsent()

    def stop(self) -> None:
        """Keep nothing any more, and end what is idle."""
        for pool in self.pools:
            pool.idle.is_open = False
        self.traffic.stop()
        self.flush()

    def close(self) -> None:
        """Drop every connection."""
        for wire in list(self.wires.values()):
            wire.transport.abort()
        for tunnel in list(self.traffic.tunnels):
            tunnel.abort()
            self.performers[tunnel]()
        for task in list(self._connects):
            task.cancel()
        for pool in self.pools:
            pool.close_unused()


def within_descriptors(connections: int, reserved: int, each: int) -> int:
    """So many connections, or as many as the system's limit allows if each needs ``each`` descriptors.

    ``reserved`` ones, or half of all, are kept back for the event loop, the health checks, the control channel and the
    log.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    possible = max(1, (soft - min(reserved, soft // 2)) // each)
    if possible < connections:
        _log.warning("%d descriptors allow %d connections, not %d; raise `ulimit -n`", soft, possible, connections)
    return min(connections, possible)
