"""What all connections of one director share: the clock of the last tick, the pools, the queue, the counters."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from coatcheck.director.delivery import DeliveryPolicy, Failure
from coatcheck.director.forwarding import route_tag_reader
from coatcheck.director.options import DirectorOptions, trusted_networks
from coatcheck.director.request_head import RequestReader
from coatcheck.director.routing import Balancer, Health, ServerState, eject, heard, servers_of, stalled
from coatcheck.director.upstream import Upstream, UpstreamPool
from coatcheck.peers.dial import open_connection

if TYPE_CHECKING:
    from coatcheck.director.downstream import Downstream
    from coatcheck.director.exchange import Exchange
    from coatcheck.director.tunnel import Tunnel

_log: Final = logging.getLogger("coatcheck.director")
# Our own shortage of descriptors or ports says nothing about a web server.
OWN_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
_LOOKED_AT_FOR_ROOM: Final = 256
_MAX_REFUSED: Final = 64
"""Connections beyond the bound that are told so; more are just dropped."""


class Fault(Enum):
    """Why a request was not served; the keys of ``status()["errors"]``."""

    BAD_REQUEST = "bad_request"
    CLIENT_TIMEOUT = "client_timeout"
    CLIENT_GONE = "client_gone"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    NO_SERVER = "no_server"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_BUSY = "upstream_busy"
    UPSTREAM_SILENT = "upstream_silent"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    BAD_RESPONSE = "bad_response"


class Relay:
    """The shared state of one director's data plane."""

    def __init__(self, options: DirectorOptions, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loop = loop
        self.now = loop.time()
        """The time of the last tick: exact enough for time-outs, and free to read."""
        self.states = servers_of((server.name, server.tag) for server in options.servers)
        self.balancer = Balancer(self.states)
        self.pools = [UpstreamPool(self, s, state) for s, state in zip(options.servers, self.states, strict=True)]
        self.read_tag = route_tag_reader(options.route_cookie, self.balancer.knows)
        self.reader = RequestReader(options.max_headers)
        self.trusted = trusted_networks(options)
        self.max_connections = options.max_connections
        """Or fewer, if the system allows fewer descriptors."""
        self.hsts = b""
        """The header line that every response over TLS carries (RFC 6797, 7.1); over plain HTTP none may."""
        if options.tls is not None and options.hsts_s > 0:
            self.hsts = b"Strict-Transport-Security: max-age=%d" % options.hsts_s
        self.clients: set[Downstream] = set()
        self.tunnels: set[Tunnel] = set()
        self.delivery_policy = DeliveryPolicy(max_sends=options.max_sends, resend_after_s=options.resend_after_s)
        self.waiting: dict[Exchange, None] = {}
        """Requests that wait for a web server, in the order in which they came."""
        self.requests = 0
        self.retries = 0
        self.evicted = 0
        """Idle connections closed to make room for new ones."""
        self.errors = dict.fromkeys((fault.value for fault in Fault), 0)
        self.stopping = False
        self.nudge: Callable[[ServerState], None] = lambda state: None
        """Asks for a health check of a server now."""
        self._connects: set[asyncio.Task[None]] = set()

    def count(self, fault: Fault) -> None:
        """Count a request that was not served."""
        self.errors[fault.value] += 1

    def has_room(self, newcomer: Downstream) -> bool:
        """Whether one more client can be served; an idle connection may have to make room for it."""
        if len(self.clients) + len(self.tunnels) <= self.max_connections:
            return True
        looked_at = itertools.islice(self.clients, _LOOKED_AT_FOR_ROOM)
        idle = [client for client in looked_at if client.is_idle and client is not newcomer]
        if not idle:
            return False
        self.evicted += 1
        min(idle, key=lambda client: client.deadline).close_if_idle()
        return True

    @property
    def is_flooded(self) -> bool:
        """Whether there are so many connections that even a refusal is too much to say."""
        return len(self.clients) + len(self.tunnels) > self.max_connections + _MAX_REFUSED

    def connect(self, pool: UpstreamPool, exchange: Exchange) -> asyncio.Task[None]:
        """Open a connection to a web server for a request; bounded by ``connect_s`` and by the clients' number."""
        task = self.loop.create_task(self._connect(pool, exchange))
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)
        return task

    async def _connect(self, pool: UpstreamPool, exchange: Exchange) -> None:
        server = pool.server
        try:
            async with asyncio.timeout(self.options.connect_s):
                upstream = await open_connection(server.door, lambda: Upstream(self, pool))
        except (TimeoutError, BlockingIOError):
            # Its queue is full: it is alive, and behind with its work.
            self.stalled(pool.state)
            failure = Failure.STALLED
        except OSError as error:
            if error.errno not in OWN_SHORTAGES:
                self.eject(pool.state, f"cannot connect: {error}")
            failure = Failure.REFUSED
        else:
            if exchange.is_connecting(asyncio.current_task()):
                exchange.connected(upstream)
            else:
                pool.release(upstream)
            return
        if exchange.is_connecting(asyncio.current_task()):
            exchange.not_connected(failure)

    def eject(self, state: ServerState, why: str) -> None:
        """Send a server no more requests until a health check passes, and ask for one now."""
        if eject(state):
            self.health_changed(state, why)
        self.nudge(state)

    def stalled(self, state: ServerState) -> None:
        """A server accepted no connection in time."""
        if stalled(state):
            self.health_changed(state, "it accepts no connection in time")
        self.nudge(state)

    def heard(self, state: ServerState) -> None:
        """Bytes came from a server that was thought busy."""
        if heard(state):
            self.health_changed(state, "it answers again")

    def park(self, exchange: Exchange) -> bool:
        """Let a request wait for a web server; ``False``: the queue is full."""
        if len(self.waiting) >= self.options.max_waiting:
            return False
        self.waiting[exchange] = None
        return True

    def unpark(self, exchange: Exchange) -> None:
        """Forget a request that waits no more."""
        self.waiting.pop(exchange, None)

    def health_changed(self, state: ServerState, why: str) -> None:
        """What waits is thought over: a server takes requests again, or there is nothing to wait for any more."""
        if state.health is Health.HEALTHY:
            _log.info("web server %s is in: %s", state.name, why)
        else:
            _log.warning("web server %s is %s: %s", state.name, state.health.value, why)
        if state.health is Health.GONE:
            self.pools[state.index].close_idle(float("inf"))
        if state.health is not Health.BUSY:
            self.wake(state if state.health is Health.HEALTHY else None)

    def wake(self, admitted: ServerState | None) -> None:
        """Think over where each request that waits may go."""
        waiting, self.waiting = self.waiting, {}
        for exchange in waiting:
            exchange.wake(admitted)

    def server_died(self, state: ServerState) -> None:
        """The supervisor says that a server's process has ended: its connections are worth nothing."""
        self.eject(state, "its process has ended")
        for client in list(self.clients):
            exchange = client.exchange
            if exchange is not None and exchange.pool is not None and exchange.pool.state is state:
                exchange.server_died()
        for tunnel in list(self.tunnels):
            if tunnel.state is state:
                tunnel.abort()

    def tick(self, now: float) -> None:
        """Look at every deadline."""
        self.now = now
        any_busy = any(state.health is Health.BUSY for state in self.states)
        for client in list(self.clients):
            if client.deadline <= now:
                client.expired(now)
            elif any_busy and client.exchange is not None:
                client.exchange.reconsider(now)
        for tunnel in list(self.tunnels):
            tunnel.tick(now)
        for pool in self.pools:
            pool.close_idle(now - self.options.upstream_idle_s)

    def close(self) -> None:
        """Drop every connection."""
        for client in list(self.clients):
            client.transport.abort()
        for tunnel in list(self.tunnels):
            tunnel.abort()
        for task in list(self._connects):
            task.cancel()
        for pool in self.pools:
            pool.close_idle(float("inf"))
