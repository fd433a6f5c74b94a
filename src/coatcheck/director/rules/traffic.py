"""What all connections of one director share: the farm's servers, the queue, the room for clients, the counters."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from coatcheck.director.rules.actions import Action, CheckNow, CloseUnused, DropHandshake, HealthChanged
from coatcheck.director.rules.admission import Admission, AdmissionPolicy, Guest, Refusal, client_of, is_within
from coatcheck.director.rules.delivery import DeliveryPolicy, Failure
from coatcheck.director.rules.durations import Durations
from coatcheck.director.rules.faults import FAULT_OF_REFUSAL, Fault
from coatcheck.director.rules.forwarding import route_tag_reader
from coatcheck.director.rules.limits import Limits, trusted_networks
from coatcheck.director.rules.request_head import RequestReader
from coatcheck.director.rules.response_head import ResponseReader
from coatcheck.director.rules.routing import (
    Balancer,
    Check,
    Health,
    HealthPolicy,
    ServerState,
    checked,
    eject,
    heard,
    stalled,
)

_LOOKED_AT_FOR_ROOM: Final = 256
_BUSY: Final = Health.BUSY
_MAX_REFUSED: Final = 64
"""Connections beyond the bound that are told so; more are just dropped."""


class Member(ABC):
    """A client's connection, as far as the others are concerned."""

    __slots__ = ()

    due_at: float
    actions: list[Action]

    server: ServerState | None
    """The web server that has its request."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether nothing is under way on it."""

    @property
    @abstractmethod
    def is_under_way(self) -> bool:
        """Whether it has a request that was not answered in full."""

    @abstractmethod
    def woken(self, admitted: ServerState | None) -> None:
        """The health of a web server changed while its request waited."""

    @abstractmethod
    def server_died(self) -> None:
        """The process that has its request has ended."""

    @abstractmethod
    def busy_tick(self) -> None:
        """Time has passed and some web server is busy."""

    @abstractmethod
    def deadline_reached(self, unsent: int) -> None:
        """Its deadline has passed."""

    @abstractmethod
    def rate_window_over(self, unsent: int) -> None:
        """A window of the least rates is over."""

    @abstractmethod
    def close_idle(self) -> None:
        """The director stops, or needs the room."""


class JoinedMember(Protocol):
    """A tunnel, as far as the others are concerned."""

    @property
    def server(self) -> ServerState | None:
        """The web server that has it."""

    @property
    def actions(self) -> Sequence[Any]:
        """What the shell is to do."""

    def server_died(self) -> None:
        """The process that has it has ended."""

    def abort(self) -> None:
        """End it now."""

    def tick(self) -> None:
        """Time has passed."""


class Attend(msgspec.Struct, frozen=True, gc=False):
    """Carry out what a connection or a tunnel asks for because of somebody else's event."""

    member: Member | JoinedMember


class ConnectFault(Enum):
    """Why no connection to a web server could be opened."""

    NOT_ACCEPTED = "its queue of connections is full, or it did not answer in time"
    OWN_SHORTAGE = "we have no descriptor or port left: that says nothing about the server"
    REFUSED = "nobody listens there, or it is not ours"


TrafficAction = Attend | CheckNow | CloseUnused | HealthChanged | DropHandshake


class Traffic:
    """The shared state of one director. ``now`` is the time of the last tick: exact enough for every time-out."""

    def __init__(
        self,
        limits: Limits,
        servers: Sequence[ServerState],
        now: float,
        *,
        max_connections: int,
        tls: bool,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``max_connections``: what the system allows of ``limits.max_connections``; ``now`` in seconds.

        ``clock``: what durations are measured by, in seconds; by default by ticks. Nothing is decided by it.
        """
        self.limits = limits
        self.now = now
        self.clock = clock or (lambda: self.now)
        self.durations = Durations()
        """How long requests took that were answered in full."""
        self.servers = servers
        self.balancer = Balancer(servers)
        self.read_tag = route_tag_reader(limits.route_cookie, self.balancer.knows)
        self.reader = RequestReader(limits.max_headers)
        self.response_reader = ResponseReader(limits.max_headers * 2)
        self.trusted = trusted_networks(limits)
        self.admission = Admission(
            AdmissionPolicy(
                max_connections=max_connections,
                max_connections_per_address=limits.max_connections_per_address,
                max_handshakes=limits.max_handshakes,
                max_websockets=limits.max_websockets,
            )
        )
        self.hsts = b"Strict-Transport-Security: max-age=%d" % limits.hsts_s if tls and limits.hsts_s > 0 else b""
        """The header line that every response over TLS carries (RFC 6797, 7.1); over plain HTTP none may."""
        self.delivery_policy = DeliveryPolicy(max_sends=limits.max_sends, resend_after_s=limits.resend_after_s)
        self._health_policy = HealthPolicy(rise=limits.checks_to_admit, fall=limits.checks_to_fail)
        self._window_ends_at = now + limits.rate_window_s
        self.actions: list[TrafficAction] = []
        """What is to be done besides what the connection that had an event asks for; the shell empties it."""
        self.connections: dict[Member, None] = {}
        self.tunnels: dict[JoinedMember, None] = {}
        self.handshakes: dict[Hashable, None] = {}
        """TLS handshakes that are under way, the oldest first."""
        self.waiting: dict[Member, None] = {}
        """Requests that wait for a web server, in the order in which they came."""
        self.requests = 0
        self.retries = 0
        self.resumed_websockets = 0
        """How often a web server has gone on with a durable WebSocket that another one had."""
        self.evicted = 0
        """Idle connections closed to make room for new ones."""
        self.errors = dict.fromkeys((fault.value for fault in Fault), 0)
        self.stopping = False

    def count(self, fault: Fault) -> None:
        """Count a request that was not served."""
        self.errors[fault.value] += 1

    # Room for clients

    def enter(self, peer: str) -> Guest:
        """Count a connection that was just accepted."""
        trusted = bool(self.trusted) and is_within(peer, self.trusted)
        return self.admission.enter(None if trusted else client_of(peer))

    def too_many(self, newcomer: Guest) -> Fault | None:
        """Why a connection cannot stay; ``None``: it can, though an idle one may have had to make room for it."""
        refusal = self.admission.refusal(newcomer)
        if refusal is Refusal.CONNECTIONS and self.make_room():
            return None
        return None if refusal is None else FAULT_OF_REFUSAL[refusal]

    def make_room(self) -> bool:
        """Close the idle connection that is due first, or the oldest handshake; answers whether there was one."""
        idle = [member for member in itertools.islice(self.connections, _LOOKED_AT_FOR_ROOM) if member.is_idle]
        if not idle:
            return self._drop_oldest_handshake()
        self.evicted += 1
        chosen = min(idle, key=lambda member: member.due_at)
        chosen.close_idle()
        self._attend(chosen)
        return True

    def begin_handshake(self, handshake: Hashable) -> None:
        """One more; if that is too many, the oldest ends: an honest one takes milliseconds."""
        self.handshakes[handshake] = None
        if len(self.handshakes) > self.admission.policy.max_handshakes:
            self._drop_oldest_handshake()

    def end_handshake(self, handshake: Hashable) -> None:
        """It succeeded, or failed."""
        self.handshakes.pop(handshake, None)

    def _drop_oldest_handshake(self) -> bool:
        handshake = next(iter(self.handshakes), None)
        if handshake is None:
            return False
        del self.handshakes[handshake]
        self.count(Fault.TOO_MANY_HANDSHAKES)
        self.actions.append(DropHandshake(handshake))
        return True

    @property
    def takes_websockets(self) -> bool:
        """Whether one more WebSocket leaves room for requests."""
        return len(self.tunnels) < self.admission.policy.max_websockets

    def is_flooded(self, guest: Guest) -> bool:
        """Whether there are so many connections that even a refusal is too much to say."""
        admission = self.admission
        most = max(admission.connections - admission.policy.max_connections, admission.excess(guest))
        return most > _MAX_REFUSED

    # The web servers

    def health_checked(self, server: ServerState, check: Check) -> None:
        """A health check of a web server has shown something."""
        if checked(server, check, self._health_policy):
            self._health_changed(server, f"health check {check.value}")

    def connect_failed(self, server: ServerState, fault: ConnectFault, why: str) -> Failure:
        """No connection to a web server could be opened; answers what that means for the request."""
        if fault is ConnectFault.OWN_SHORTAGE:
            self.actions.append(CloseUnused(None))
            return Failure.STALLED
        if fault is ConnectFault.NOT_ACCEPTED:
            # It is alive, and behind with its work.
            if stalled(server):
                self._health_changed(server, "it accepts no connection in time")
            self.actions.append(CheckNow(server))
            return Failure.STALLED
        self.eject(server, f"cannot connect: {why}")
        return Failure.REFUSED

    def eject(self, server: ServerState, why: str) -> None:
        """Send a server no more requests until a health check passes, and ask for one now."""
        if eject(server):
            self._health_changed(server, why)
        self.actions.append(CheckNow(server))

    def check_now(self, server: ServerState) -> None:
        """Something went wrong with a server: ask for a check."""
        self.actions.append(CheckNow(server))

    def heard(self, server: ServerState | None) -> None:
        """Bytes came from a server: a sign of life, and the end of being thought busy."""
        assert server is not None
        server.answers += 1
        if server.health is _BUSY and heard(server):
            self._health_changed(server, "it answers again")

    def server_died(self, server: ServerState) -> None:
        """The supervisor says that a server's process has ended: its connections are worth nothing."""
        self.eject(server, "its process has ended")
        for member in list(self.connections):
            if member.server is server:
                member.server_died()
                self._attend(member)
        for tunnel in list(self.tunnels):
            if tunnel.server is server:
                tunnel.server_died()
                self._attend(tunnel)

    def set_draining(self, server: ServerState, *, draining: bool) -> None:
        """Send a web server no more requests, not even those of its own sessions; or send it requests again."""
        was_draining, server.draining = server.draining, draining
        if was_draining != draining:
            self._wake(None if draining else server)

    def _health_changed(self, server: ServerState, why: str) -> None:
        """What waits is thought over: a server takes requests again, or there is nothing to wait for any more."""
        self.actions.append(HealthChanged(server, server.health, why))
        if server.health is Health.GONE:
            self.actions.append(CloseUnused(server))
        if server.health is not Health.BUSY:
            self._wake(server if server.health is Health.HEALTHY else None)

    # The queue

    def park(self, member: Member) -> bool:
        """Let a request wait for a web server; ``False``: the queue is full."""
        if len(self.waiting) >= self.limits.max_waiting:
            return False
        self.waiting[member] = None
        return True

    def unpark(self, member: Member) -> None:
        """Forget a request that waits no more."""
        self.waiting.pop(member, None)

    def _wake(self, admitted: ServerState | None) -> None:
        """Think over where each request that waits may go."""
        waiting, self.waiting = self.waiting, {}
        for member in waiting:
            member.woken(admitted)
            self._attend(member)

    def _attend(self, member: Member | JoinedMember) -> None:
        if member.actions:
            self.actions.append(Attend(member))

    # Time, and the end

    def tick(self, now: float, unsent: Callable[[Member], int]) -> None:
        """Time has passed: what is due? ``unsent``: how many bytes still wait to leave for a client."""
        self.now = now
        any_busy = any(server.health is Health.BUSY for server in self.servers)
        window_is_over = self._window_ends_at <= now
        if window_is_over:
            self._window_ends_at = now + self.limits.rate_window_s
        for member in list(self.connections):
            if window_is_over:
                member.rate_window_over(unsent(member))
            if member.actions:
                pass  # What it asks for is done before it is asked again.
            elif member.due_at <= now:
                member.deadline_reached(unsent(member))
            elif any_busy and member.is_under_way:
                member.busy_tick()
            self._attend(member)
        for tunnel in list(self.tunnels):
            tunnel.tick()
            self._attend(tunnel)

    def stop(self) -> None:
        """The director stops: no connection outlives its response, and idle ones end now."""
        self.stopping = True
        for member in list(self.connections):
            if member.is_idle:
                member.close_idle()
                self._attend(member)
