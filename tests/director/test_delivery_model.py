"""Any order of requests, blocked, dying and returning web servers, late checks and passing time: the shipped exchange
and its rules on a farm without sockets. Nothing runs too often, nothing moves for silence alone, nobody waits for ever.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.delivery import Delivery, DeliveryPolicy
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Check, Health, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import ConnectFault, Traffic
from coatcheck.director.rules.transitions import State

SERVERS = 2
RESEND_AFTER_S = 5.0
FIRST_BYTE_S = 12.0
NO_SERVER_WAIT_S = 2.0
METHODS = st.sampled_from([b"GET", b"HEAD", b"PUT", b"DELETE", b"POST", b"PATCH", b"BREW"])
IDEMPOTENT = {b"GET", b"HEAD", b"PUT", b"DELETE"}
WHICH = st.integers(0, SERVERS - 1)
LIMITS = Limits(
    resend_after_s=RESEND_AFTER_S,
    first_byte_timeout_s=FIRST_BYTE_S,
    no_server_wait_s=NO_SERVER_WAIT_S,
    max_waiting=1000,
    keep_alive_timeout_s=1e9,
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Wire:
    """A connection: what was written to it is in the web server's hands until that one dies."""

    def __init__(self, server: Server, request: Request) -> None:
        self.server, self.life = server, server.life
        self.request: Request | None = request
        self.is_gone = False
        self.written_at = 0.0


class Server:
    """The truth about a web server, which the director cannot see."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.alive, self.blocked = True, False
        self.full = False
        """Whether its queue of connections is full while it is blocked."""
        self.life = 0
        self.inbox: list[tuple[Wire, Request]] = []


class Request:
    """A browser's request, and the shell of its connection."""

    def __init__(self, farm: Farm, method: bytes, tag: int | None) -> None:
        self.farm, self.traffic, self.method, self.tag = farm, farm.traffic, method, tag
        self.arrived_at = self.traffic.now
        self.executed = 0
        self.wire: Wire | None = None
        self.reach: Reach | None = None
        self.writes: list[Wire] = []
        self.answered: object = None
        address = ClientAddress("192.0.2.1", tls=False, trusted=())
        self.machine = ProxiedConnection(self.traffic, address, can_half_close=True)
        self.machine.opened()
        cookie = b"" if tag is None else b"Cookie: coatcheck-route=tag-%d\r\n" % tag
        self.machine.client_bytes(b"%b / HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method, cookie))

    def perform(self) -> None:
        actions, self.machine.actions[:] = list(self.machine.actions), []
        for action in actions:
            if isinstance(action, Reach):
                self.reach = action
            elif isinstance(action, ToServer):
                assert self.wire is not None
                self.wire.written_at = self.traffic.now
                self.writes.append(self.wire)
                self.wire.server.inbox.append((self.wire, self))
            elif isinstance(action, ToClient):
                assert self.answered is None, "answered twice"
                self.answered = int(action.data[9:12])
            elif isinstance(action, ReleaseServer) or action is Order.LEAVE_SERVER:
                if self.wire is not None:
                    self.wire.request = None
                self.wire = self.reach = None

    @property
    def is_parked(self) -> bool:
        return self.machine.state is State.PARKED


class Farm(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.states = servers_of((f"web-{n}", f"tag-{n}") for n in range(SERVERS))
        for state in self.states:
            state.health = Health.HEALTHY
        # Nobody is refused: each of the model's requests comes over a connection of its own.
        limits = msgspec.structs.replace(LIMITS, max_connections_per_address=10_000)
        self.traffic = Traffic(limits, self.states, 0.0, max_connections=10_000, tls=False)
        self.servers = [Server(index) for index in range(SERVERS)]
        self.requests: list[Request] = []

    def _settle(self) -> None:
        """Carry out what is asked for; connections to loopback are there, or refused, at once."""
        while True:
            self.traffic.actions.clear()
            for request in self.requests:
                request.perform()
            reaching = [request for request in self.requests if request.reach is not None]
            if not reaching:
                return
            for request in reaching:
                self._connect(request)

    def _connect(self, request: Request) -> None:
        reach, request.reach = request.reach, None
        assert reach is not None
        server = self.servers[reach.server.index]
        if server.alive and not (server.blocked and server.full):
            request.wire = Wire(server, request)
            request.machine.connected(reused=False, full=False)
            return
        fault = ConnectFault.NOT_ACCEPTED if server.alive else ConnectFault.REFUSED
        request.machine.not_connected(self.traffic.connect_failed(reach.server, fault, "refused"))

    # What browsers do

    @rule(method=METHODS, tag=st.none() | WHICH)
    def arrive(self, method: bytes, tag: int | None) -> None:
        self.requests.append(Request(self, method, tag))
        self._settle()

    @precondition(lambda self: self._open())
    @rule(pick=st.data())
    def leave(self, pick: st.DataObject) -> None:
        request = pick.draw(st.sampled_from(self._open()))
        request.answered = "left"
        request.machine.client_lost()
        self._settle()

    # What web servers do

    @rule(which=WHICH, full=st.booleans())
    def block(self, which: int, full: bool) -> None:
        self.servers[which].blocked, self.servers[which].full = self.servers[which].alive, full

    @rule(which=WHICH)
    def unblock(self, which: int) -> None:
        self.servers[which].blocked = False

    @rule(which=WHICH, told=st.booleans())
    def die(self, which: int, told: bool) -> None:
        server = self.servers[which]
        lost, server.inbox = server.inbox, []
        server.alive = server.blocked = False
        if told:
            # The supervisor's word comes before the connections' end.
            self.traffic.server_died(self.states[which])
            self._settle()
        for wire, _ in lost:
            self._end(wire)
        self._settle()

    @rule(which=WHICH)
    def come_back(self, which: int) -> None:
        server = self.servers[which]
        if not server.alive:
            server.alive, server.life = True, server.life + 1

    @rule(which=WHICH, draining=st.booleans())
    def drain(self, which: int, draining: bool) -> None:
        self.traffic.set_draining(self.states[which], draining=draining)
        self._settle()

    @rule(which=WHICH, how=st.sampled_from(["answer", "answer", "cut", "nonsense", "block"]))
    def work(self, which: int, how: str) -> None:
        """A server takes the next request that it was sent, carries it out, and then answers or does not."""
        server = self.servers[which]
        if server.blocked or not server.inbox:
            return
        wire, request = server.inbox[0]
        request.executed += 1
        if how == "block":
            server.blocked = True
            server.inbox[0] = wire, _Done(request)  # type: ignore[assignment]
            return
        server.inbox.pop(0)
        if wire.request is None:
            return
        if how == "cut":
            self._end(wire)
        else:
            request.machine.server_bytes(b"nonsense\r\n\r\n" if how == "nonsense" else ANSWER)
        self._settle()

    @rule(which=WHICH, honest=st.booleans())
    def check(self, which: int, honest: bool) -> None:
        server, state = self.servers[which], self.states[which]
        seen = Check.REFUSED if not server.alive else Check.SILENT if server.blocked else Check.PASSED
        self.traffic.health_checked(state, seen if honest else Check.INCONCLUSIVE)
        self._settle()

    # What time does

    @rule(seconds=st.sampled_from([0.1, 0.7, 2.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        for which in range(SERVERS):
            for _ in range(min(2, int(seconds / 0.3))):
                self.check(which, honest=True)
        self.traffic.tick(self.traffic.now + seconds, lambda member: 0)
        self._settle()

    # What must hold

    @invariant()
    def nothing_runs_too_often(self) -> None:
        for request in self.requests:
            most = 2 if request.method in IDEMPOTENT else 1
            assert request.executed <= most
            assert len(request.writes) <= most

    @invariant()
    def nothing_moves_for_silence_alone(self) -> None:
        for request in self.requests:
            for first, second in zip(request.writes, request.writes[1:], strict=False):
                dead = first.server.life != first.life or not first.server.alive
                silent_s = second.written_at - first.written_at
                assert dead or first.is_gone or silent_s >= RESEND_AFTER_S, "written twice while its server lives"

    @invariant()
    def nobody_waits_without_need(self) -> None:
        takes = {state.index for state in self.states if state.health is Health.HEALTHY and not state.draining}
        for request in self._open():
            if not request.is_parked:
                continue
            assert request.machine in self.traffic.waiting
            # Rather than ask a server that has just failed it, it waits for one that is busy.
            fit = takes - {state.index for state in request.machine._delivery.tried}
            named = request.tag
            assert named not in fit
            state = None if named is None else self.states[named]
            waits_for_its_own = state is not None and state.health is Health.BUSY and not state.draining
            waited_s = self.traffic.now - request.machine._waiting_since
            assert (waits_for_its_own and waited_s < RESEND_AFTER_S) or not fit
        assert len(self.traffic.waiting) == sum(request.is_parked for request in self._open())

    @invariant()
    def an_error_tells_the_truth(self) -> None:
        for request in self.requests:
            if request.answered == 502:
                assert request.writes, "nothing was sent: it could have gone anywhere"
            if request.answered == 503:
                sent = len(request.writes)
                assert sent == 0 or request.method in IDEMPOTENT, "it may have been carried out"
            assert request.answered is not None or self.traffic.now - request.arrived_at < 3 * FIRST_BYTE_S

    @invariant()
    def the_counts_are_right(self) -> None:
        for state in self.states:
            held = [request for request in self._open() if request.machine.server is state]
            assert state.in_flight == len(held)

    def _open(self) -> list[Request]:
        return [request for request in self.requests if request.answered is None]

    def _end(self, wire: Wire) -> None:
        wire.is_gone = True
        if wire.request is not None:
            wire.request.machine.server_ended(Ending.CLEAN)


class _Done:
    """A request that was carried out already and whose answer waits for its blocked server."""

    def __init__(self, request: Request) -> None:
        object.__setattr__(self, "request", request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        if name != "executed":
            setattr(self.request, name, value)  # type: ignore[attr-defined]


MODEL = settings(max_examples=400, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
TestAnyOrder = Farm.TestCase
TestAnyOrder.settings = MODEL


def test_a_write_too_many_is_refused_by_the_rules_themselves() -> None:
    for method, most in ((b"GET", 2), (b"PUT", 2), (b"POST", 1), (b"BREW", 1)):
        delivery = Delivery(method, None)
        for _ in range(most):
            delivery.write()
        assert not delivery.may_be_resent(DeliveryPolicy(resend_after_s=RESEND_AFTER_S))
    with pytest.raises(AssertionError):
        delivery.write()
