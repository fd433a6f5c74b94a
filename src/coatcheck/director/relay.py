"""What all connections of one director share: the clock of the last tick, the pools, the queue, the counters."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import resource
import socket
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from coatcheck.director.options import DirectorOptions, trusted_networks
from coatcheck.director.rules.admission import Admission, AdmissionPolicy, Guest, Refusal, client_of, is_within
from coatcheck.director.rules.delivery import DeliveryPolicy, Failure
from coatcheck.director.rules.forwarding import route_tag_reader
from coatcheck.director.rules.request_head import RequestReader
from coatcheck.director.rules.routing import Balancer, Health, ServerState, eject, heard, servers_of, stalled
from coatcheck.director.upstream import Upstream, UpstreamPool
from coatcheck.peers.dial import open_connection
from coatcheck.seldom import Seldom

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
    CLIENT_TOO_SLOW = "client_too_slow"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    TOO_MANY_FROM_ADDRESS = "too_many_from_address"
    TOO_MANY_WEBSOCKETS = "too_many_websockets"
    TOO_MANY_HANDSHAKES = "too_many_handshakes"
    HANDSHAKE_FAILED = "handshake_failed"
    NO_SERVER = "no_server"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_BUSY = "upstream_busy"
    UPSTREAM_SILENT = "upstream_silent"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    BAD_RESPONSE = "bad_response"


_REFUSALS: Final = {
    Refusal.CONNECTIONS: Fault.TOO_MANY_CONNECTIONS,
    Refusal.ADDRESS: Fault.TOO_MANY_FROM_ADDRESS,
    Refusal.WEBSOCKETS: Fault.TOO_MANY_WEBSOCKETS,
}


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
        self.admission = Admission(
            AdmissionPolicy(
                max_connections=within_descriptors(options.max_connections, options.reserved_descriptors),
                max_connections_per_address=options.max_connections_per_address,
                max_handshakes=options.max_handshakes,
                max_websockets=options.max_websockets,
            )
        )
        self.handshakes: dict[socket.socket, None] = {}
        """TLS handshakes that are under way, the oldest first."""
        self.seldom = Seldom(_log, loop.time)
        self._pace_at = self.now + options.rate_window_s
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

    def enter(self, peer: str) -> Guest:
        """Count a connection that was just accepted."""
        trusted = bool(self.trusted) and is_within(peer, self.trusted)
        return self.admission.enter(None if trusted else client_of(peer))

    def too_many(self, newcomer: Guest) -> Fault | None:
        """Why a connection cannot stay; ``None``: it can, though an idle one may have had to make room for it."""
        refusal = self.admission.refusal(newcomer)
        if refusal is Refusal.CONNECTIONS and self.make_room():
            return None
        return None if refusal is None else _REFUSALS[refusal]

    def make_room(self) -> bool:
        """Close an idle connection, or the oldest handshake; answers whether there was one."""
        looked_at = itertools.islice(self.clients, _LOOKED_AT_FOR_ROOM)
        idle = [client for client in looked_at if client.is_idle]
        if not idle:
            return self._drop_oldest_handshake()
        self.evicted += 1
        min(idle, key=lambda client: client.deadline).close_if_idle()
        return True

    def _drop_oldest_handshake(self) -> bool:
        sock = next(iter(self.handshakes), None)
        if sock is None:
            return False
        del self.handshakes[sock]
        self.count(Fault.TOO_MANY_HANDSHAKES)
        # The end of the stream ends the handshake.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        return True

    def begin_handshake(self, sock: socket.socket) -> None:
        """One more; if that is too many, the oldest ends: an honest one takes milliseconds."""
        self.handshakes[sock] = None
        if len(self.handshakes) > self.admission.policy.max_handshakes:
            self._drop_oldest_handshake()

    def end_handshake(self, sock: socket.socket) -> None:
        """It succeeded, or failed."""
        self.handshakes.pop(sock, None)

    @property
    def takes_websockets(self) -> bool:
        """Whether one more WebSocket leaves room for requests."""
        return len(self.tunnels) < self.admission.policy.max_websockets

    def is_flooded(self, guest: Guest) -> bool:
        """Whether there are so many connections that even a refusal is too much to say."""
        admission = self.admission
        most = max(admission.connections - admission.policy.max_connections, admission.excess(guest))
        return most > _MAX_REFUSED

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
            failure = Failure.REFUSED
            if error.errno in OWN_SHORTAGES:
                # That says nothing about the server: give back what is not needed, and try again in a while.
                self.seldom.warning("no connection to a web server can be opened: %s", error.strerror)
                for each in self.pools:
                    each.close_idle(float("inf"))
                await asyncio.sleep(self.options.tick_s)
                failure = Failure.STALLED
            else:
                self.eject(pool.state, f"cannot connect: {error}")
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
            self.seldom.write(logging.INFO, "web server %s is in: %s", state.name, why, kind=f"{state.name} in")
        else:
            kind = f"{state.name} {state.health.value}"
            self.seldom.warning("web server %s is %s: %s", state.name, state.health.value, why, kind=kind)
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
        if self._pace_at <= now:
            self._pace_at = now + self.options.rate_window_s
            for client in list(self.clients):
                client.judge_pace(now)
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


def within_descriptors(connections: int, reserved: int) -> int:
    """So many connections, or as many as the system's limit allows: each may need one more to a web server.

    ``reserved`` ones, or half of all, are kept back for the event loop, the health checks, the control channel and the
    log.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    possible = max(1, (soft - min(reserved, soft // 2)) // 2)
    if possible < connections:
        _log.warning("%d descriptors allow %d connections, not %d; raise `ulimit -n`", soft, possible, connections)
    return min(connections, possible)
