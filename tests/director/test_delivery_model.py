"""Any order of requests, blocked, dying and returning web servers, late checks and passing time: the shipped exchange
and its rules on a farm without sockets. Nothing runs too often, nothing moves for silence alone, nobody waits for ever.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coatcheck.director import DirectorOptions, WebServer
from coatcheck.director.exchange import Exchange
from coatcheck.director.relay import Fault, Relay
from coatcheck.director.rules.delivery import Delivery, Failure
from coatcheck.director.rules.request_head import RequestHead, parse_request_fields
from coatcheck.director.rules.routing import Check, Health, HealthPolicy, checked

SERVERS = 2
RESEND_AFTER_S = 5.0
FIRST_BYTE_S = 12.0
NO_SERVER_WAIT_S = 2.0
METHODS = st.sampled_from([b"GET", b"HEAD", b"PUT", b"DELETE", b"POST", b"PATCH", b"BREW"])
IDEMPOTENT = {b"GET", b"HEAD", b"PUT", b"DELETE"}
WHICH = st.integers(0, SERVERS - 1)
FIELDS = parse_request_fields(b"HTTP/1.1\r\nHost: a", 100, has_authority=False)
OPTIONS = DirectorOptions(
    servers=tuple(WebServer(f"web-{n}", "127.0.0.1", n + 1, f"tag-{n}") for n in range(SERVERS)),
    resend_after_s=RESEND_AFTER_S,
    first_byte_s=FIRST_BYTE_S,
    no_server_wait_s=NO_SERVER_WAIT_S,
    max_waiting=1000,
)


class Loop:
    """What a relay needs of an event loop when it opens no socket."""

    def time(self) -> float:
        return 0.0


class Wire:
    """A connection: what was written to it is in the web server's hands until that one dies."""

    def __init__(self, server: Server) -> None:
        self.server, self.life = server, server.life
        self.exchange: Exchange | None = None
        self.is_gone = self.is_reused = self.write_paused = self.is_holding = False
        self.transport = self
        self.written_at = 0.0

    def write(self, data: bytes) -> None:
        request = self.exchange.client  # type: ignore[union-attr]
        assert isinstance(request, Request)
        self.written_at = request.relay.now
        request.writes.append(self)
        self.server.inbox.append((self, request))

    def drop(self) -> None:
        self.exchange = None


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
    """A browser's request, as its connection to the director."""

    def __init__(self, relay: Relay, method: bytes, tag: bytes | None) -> None:
        self.relay, self.method, self.tag = relay, method, tag
        self.arrived_at = relay.now
        self.deadline = relay.now + 1000.0
        self.body_done, self.write_paused = True, False
        self.executed = 0
        self.writes: list[Wire] = []
        self.answered: object = None
        head = RequestHead(method, b"/", FIELDS, b"")
        self.exchange: Any = Exchange(relay, self, head, b"request", tag)  # type: ignore[arg-type]

    def fail(self, status: int, fault: Fault) -> None:
        assert self.answered is None
        self.answered = status
        self.exchange.abandon()

    def release_body(self) -> None: ...

    def answer_timeout_s(self) -> float:
        return FIRST_BYTE_S


class Farm(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay(OPTIONS, Loop())  # type: ignore[arg-type]
        self.relay.connect = self._connect  # type: ignore[method-assign]
        self.servers = [Server(index) for index in range(SERVERS)]
        self.requests: list[Request] = []
        self.connecting: list[tuple[Any, Server, Exchange]] = []
        for state in self.relay.states:
            state.health = Health.HEALTHY

    def _connect(self, pool: Any, exchange: Exchange) -> Any:
        task = object()
        self.connecting.append((task, self.servers[pool.state.index], exchange))
        return task

    def _settle(self) -> None:
        """Connections to loopback are there, or refused, at once."""
        while self.connecting:
            task, server, exchange = self.connecting.pop(0)
            if not exchange.is_connecting(task):
                continue
            if server.alive and server.blocked and server.full:
                self.relay.stalled(self.relay.states[server.index])
                exchange.not_connected(Failure.STALLED)
            elif server.alive:
                exchange.connected(Wire(server))  # type: ignore[arg-type]
            else:
                self.relay.eject(self.relay.states[server.index], "refused")
                exchange.not_connected(Failure.REFUSED)

    # What browsers do

    @rule(method=METHODS, tag=st.none() | WHICH)
    def arrive(self, method: bytes, tag: int | None) -> None:
        request = Request(self.relay, method, None if tag is None else b"tag-%d" % tag)
        self.requests.append(request)
        request.exchange.dispatch()
        self._settle()

    @precondition(lambda self: self._open())
    @rule(pick=st.data())
    def leave(self, pick: st.DataObject) -> None:
        request = pick.draw(st.sampled_from(self._open()))
        request.answered = "left"
        request.exchange.abandon()

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
            # In the order of their arrival: a set of them would be in another order each time.
            self.relay.clients = dict.fromkeys(self._open())  # type: ignore[assignment]
            self.relay.server_died(self.relay.states[which])
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
        state = self.relay.states[which]
        state.draining = draining
        self.relay.wake(None if draining else state)
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
        exchange = wire.exchange
        if exchange is None:
            return
        if how == "cut":
            self._end(wire)
        elif how == "nonsense":
            exchange.bad_response(wire)  # type: ignore[arg-type]
        else:
            self._heard(server)
            exchange.release_server()
            request.answered = 200
        self._settle()

    @rule(which=WHICH, honest=st.booleans())
    def check(self, which: int, honest: bool) -> None:
        server, state = self.servers[which], self.relay.states[which]
        seen = Check.REFUSED if not server.alive else Check.SILENT if server.blocked else Check.PASSED
        if checked(state, seen if honest else Check.INCONCLUSIVE, HealthPolicy()):
            self.relay.health_changed(state, "checked")
        self._settle()

    # What time does

    @rule(seconds=st.sampled_from([0.1, 0.7, 2.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        for which in range(SERVERS):
            for _ in range(min(2, int(seconds / 0.3))):
                self.check(which, honest=True)
        self.relay.now += seconds
        for request in self._open():
            if request.deadline <= self.relay.now:
                if request.exchange.is_parked:
                    request.exchange.waited_too_long()
                else:
                    request.exchange.timed_out()
            else:
                request.exchange.reconsider(self.relay.now)
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
        takes = {state.index for state in self.relay.states if state.health is Health.HEALTHY and not state.draining}
        for request in self._open():
            if not request.exchange.is_parked:
                continue
            assert request.exchange in self.relay.waiting
            # Rather than ask a server that has just failed it, it waits for one that is busy.
            fit = takes - {state.index for state in request.exchange.delivery.tried}
            named = None if request.tag is None else int(request.tag[-1:])
            assert named not in fit
            state = None if named is None else self.relay.states[named]
            waits_for_its_own = state is not None and state.health is Health.BUSY and not state.draining
            waited_s = self.relay.now - request.exchange._waiting_since
            assert (waits_for_its_own and waited_s < RESEND_AFTER_S) or not fit
        assert len(self.relay.waiting) == sum(request.exchange.is_parked for request in self._open())

    @invariant()
    def an_error_tells_the_truth(self) -> None:
        for request in self.requests:
            if request.answered == 502:
                assert request.writes, "nothing was sent: it could have gone anywhere"
            if request.answered == 503:
                sent = len(request.writes)
                assert sent == 0 or request.method in IDEMPOTENT, "it may have been carried out"
            assert request.answered is not None or self.relay.now - request.arrived_at < 3 * FIRST_BYTE_S

    @invariant()
    def the_counts_are_right(self) -> None:
        for state in self.relay.states:
            held = [r for r in self._open() if r.exchange.pool is not None and r.exchange.pool.state is state]
            assert state.in_flight == len(held)

    def _open(self) -> list[Request]:
        return [request for request in self.requests if request.answered is None]

    def _heard(self, server: Server) -> None:
        self.relay.heard(self.relay.states[server.index])

    def _end(self, wire: Wire) -> None:
        wire.is_gone = True
        exchange, wire.exchange = wire.exchange, None
        if exchange is not None:
            exchange.lost(wire, reset=False)  # type: ignore[arg-type]


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
        assert not delivery.may_be_resent(Relay(OPTIONS, Loop()).delivery_policy)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        delivery.write()
