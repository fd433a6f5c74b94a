"""The director's exchange without sockets: its table, and what must hold whatever comes in whatever order."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coatcheck.director.rules import connection
from coatcheck.director.rules.actions import (
    AtEnd,
    Order,
    Reach,
    ReleaseServer,
    ToClient,
    ToServer,
    TunnelOrder,
    TunnelSide,
)
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.deadlines import LIMIT_OF, DeadlineKind
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Health, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Traffic
from coatcheck.director.rules.transitions import TRANSITIONS, ConnectionEvent, ProtocolError, State

from .random_walk import WatchedConnection, seen, walk

ARGUMENTS: dict[ConnectionEvent, tuple[tuple[object, ...], dict[str, object]]] = {
    ConnectionEvent.CLIENT_BYTES: ((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",), {}),
    ConnectionEvent.CLIENT_FULL: ((1,), {}),
    ConnectionEvent.CONNECTED: ((), {"reused": False, "full": False}),
    ConnectionEvent.NOT_CONNECTED: ((Failure.REFUSED,), {}),
    ConnectionEvent.SERVER_BYTES: ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), {}),
    ConnectionEvent.SERVER_ENDED: ((Ending.CLEAN,), {}),
    ConnectionEvent.WOKEN: ((None,), {}),
    ConnectionEvent.DEADLINE: ((0,), {}),
    ConnectionEvent.RATE_WINDOW: ((0,), {}),
}


def fresh(*, can_half_close: bool = True) -> ProxiedConnection:
    traffic = Traffic(Limits(), servers_of([("web-1", "one")]), 0.0, max_connections=10, tls=False)
    address = ClientAddress("192.0.2.1", tls=False, trusted=())
    return ProxiedConnection(traffic, address, can_half_close=can_half_close)


@pytest.mark.parametrize("event", list(ConnectionEvent), ids=lambda event: event.value)
@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_pair_is_listed_or_refused(state: State, event: ConnectionEvent) -> None:
    machine = fresh()
    machine.state = state
    arguments, named = ARGUMENTS.get(event, ((), {}))
    if state in TRANSITIONS[event]:
        assert TRANSITIONS[event][state], "a listed event leads somewhere"
        assert state in connection._Handlers(event)
        return
    with pytest.raises(ProtocolError) as caught:
        getattr(machine, event.value)(*arguments, **named)
    assert (caught.value.state, caught.value.event) == (state, event)
    assert machine.state is state and not machine.actions, "a refused event changes nothing"


def test_the_table_has_every_event_and_no_handler_stands_beside_it() -> None:
    assert set(TRANSITIONS) == set(ConnectionEvent) == set(connection._HANDLERS)
    for event, handlers in connection._HANDLERS.items():
        # One that stands for all states is used where the table lists the event.
        stands_for_all = set(handlers) == set(State)
        assert stands_for_all or set(handlers) <= set(TRANSITIONS[event])
    assert not any(State.NEW in states for states in TRANSITIONS[ConnectionEvent.OPENED].values())


def test_every_deadline_is_named_and_has_its_limit() -> None:
    fields = {field.name for field in msgspec.structs.fields(Limits)}
    assert set(LIMIT_OF) == set(DeadlineKind)
    assert set(LIMIT_OF.values()) <= fields
    machine = fresh()
    machine.opened()
    assert machine.deadline == (DeadlineKind.HEADER, Limits().header_timeout_s)
    assert machine.deadline.why == "a request's head must be whole"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.integers(20, 150))
def test_whatever_comes_in_whatever_order(rng: random.Random, steps: int) -> None:
    walk(rng, steps)


def test_every_listed_event_comes_and_leads_nowhere_else() -> None:
    """Always the same walks. Where an event leads from a state, the table may list more than these come across."""
    for seed in range(WALKS):
        walk(random.Random(seed), 300)
    rare_meetings()
    listed = {
        (event, before, after)
        for event, befores in TRANSITIONS.items()
        for before, afters in befores.items()
        for after in afters
    }
    assert seen <= listed
    walked = {(event, before) for event, before, _ in seen}
    assert [(e.name, b.name) for e, b, _ in listed if (e, b) not in walked] == [], "listed, and never comes"


WALKS = 400


def rare_meetings() -> None:
    """What hardly any walk comes across: buffers that fill or empty just while a response is held or begins."""
    traffic = Traffic(Limits(), servers_of([("web-1", "one")]), 0.0, max_connections=10, tls=False)
    traffic.servers[0].health = Health.HEALTHY
    machine = WatchedConnection(traffic, ClientAddress("192.0.2.1", tls=False, trusted=()), can_half_close=True)
    machine.opened()
    machine.client_bytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    machine.connected(reused=False, full=False)
    machine.go_on()
    machine.server_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
    for _ in range(2):
        machine.server_full()
        machine.server_ready()
        machine.client_full(1)
        machine.client_ready()
        machine.go_on()
        if machine.state is State.HELD:
            machine.deadline_reached(0)
    assert machine.state is State.REPLYING
    machine.server_bytes(b"67890")
    machine.go_on()
    assert machine.state is State.IDLE and machine.actions[-1] == ReleaseServer(keep=True)


def test_a_client_that_takes_nothing_is_not_read_for_ever() -> None:
    """Its next request begins while the answer before still waits for it: the first read of it is the last."""
    machine = fresh()
    machine.opened()
    machine.client_bytes(b"GET /.well-known/coatcheck/x HTTP/1.1\r\nHost: a\r\n\r\n")
    machine.client_full(100_000)
    assert machine.state is State.IDLE
    machine.actions.clear()
    machine.client_bytes(b"GET / HTTP/1.1\r\nX: ")
    assert machine.actions == [Order.PAUSE_CLIENT]
    machine.client_ready()
    assert machine.actions == [Order.PAUSE_CLIENT, Order.RESUME_CLIENT]


GET = b"GET /.well-known/coatcheck/x HTTP/1.1\r\nHost: a\r\n\r\n"


def test_no_answer_is_added_to_those_that_a_client_does_not_take() -> None:
    """One whole request after another, each in a read of its own, and none of the answers is taken."""
    machine = fresh()
    machine.opened()
    machine.client_bytes(GET)
    machine.client_full(100_000)
    machine.actions.clear()
    machine.client_bytes(GET)
    assert machine.actions == [Order.PAUSE_CLIENT], "it is neither answered nor read any more"
    machine.client_ready()
    assert [type(action) for action in machine.actions[1:]] == [Order, ToClient]
    assert machine.state is State.IDLE


def test_a_slow_client_gets_the_end_of_the_last_response() -> None:
    """The connection ends with the response, and the client takes what is buffered of it for longer than it lingers."""
    machine = fresh()
    traffic = machine._traffic
    traffic.servers[0].health = Health.HEALTHY
    machine.opened()
    machine.client_bytes(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    machine.connected(reused=False, full=False)
    machine.server_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert machine.state is State.CLOSING and machine.actions[-1] is Order.CLOSE_CLIENT
    machine.actions.clear()
    for unsent in range(100_000, 0, -5_000):
        traffic.tick(machine.due_at, {machine: unsent}.__getitem__)
        assert not machine.actions, unsent
    traffic.tick(machine.due_at, {machine: 0}.__getitem__)
    assert machine.actions == [Order.ABORT_CLIENT]


@pytest.mark.parametrize(("stops", "order"), [(False, [Order.RESET_CLIENT]), (True, [])], ids=["room", "stop"])
def test_a_connection_that_ends_for_the_room_it_takes_does_not_keep_it(stops: bool, order: list[Order]) -> None:
    """A client that does not take its answers cannot stay by that; when the director stops, its grace is the bound."""
    machine = fresh()
    traffic = machine._traffic
    machine.opened()
    machine.client_bytes(GET)
    machine.client_full(100_000)
    if stops:
        traffic.stop()
    else:
        assert traffic.make_room()
    assert machine.actions[-1] is Order.CLOSE_CLIENT
    machine.actions.clear()
    traffic.tick(Limits().linger_s, {machine: 90_000}.__getitem__)
    assert machine.actions == order


@pytest.mark.parametrize("takes", [0, 1], ids=["nothing", "too little"])
def test_a_client_that_takes_too_little_of_the_last_response_is_dropped(takes: int) -> None:
    machine = fresh()
    traffic = machine._traffic
    machine.opened()
    machine.client_bytes(b"nonsense\r\n\r\n")
    assert machine.state is State.LINGERING
    machine.actions.clear()
    unsent = 100_000
    while not machine.actions:
        traffic.tick(machine.due_at, {machine: unsent}.__getitem__)
        unsent -= takes
        assert traffic.now < 2 * Limits().body_timeout_s + 2 * Limits().rate_window_s
    assert machine.actions == [Order.RESET_CLIENT], "what it has of a body must not look whole"


def test_where_our_side_cannot_end_alone_the_end_waits_until_the_answer_has_left() -> None:
    machine = fresh(can_half_close=False)
    traffic, linger_s = machine._traffic, Limits().linger_s
    machine.opened()
    machine.client_bytes(b"POST /.well-known/coatcheck/ HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
    assert [type(action) for action in machine.actions] == [ToClient], "nothing ends yet"
    machine.actions.clear()
    machine.client_bytes(b"swallowed")
    for unsent in (2, 1):
        traffic.tick(machine.due_at, {machine: unsent}.__getitem__)
        assert (machine.state, machine.actions) == (State.LINGERING, [])
    traffic.tick(machine.due_at, {machine: 0}.__getitem__)
    assert (machine.state, machine.actions) == (State.CLOSING, [Order.CLOSE_CLIENT])
    assert machine.deadline == (DeadlineKind.LINGER, traffic.now + linger_s)
    machine.actions.clear()
    traffic.tick(machine.due_at, {machine: 0}.__getitem__)
    assert machine.actions == [Order.ABORT_CLIENT], "it does not end its side either"


def test_a_client_that_ends_its_side_is_not_waited_for() -> None:
    machine = fresh(can_half_close=False)
    machine.opened()
    machine.client_bytes(b"nonsense\r\n\r\n")
    machine.actions.clear()
    machine.client_eof()
    assert (machine.state, machine.actions) == (State.CLOSING, [Order.CLOSE_CLIENT])


def test_a_request_that_leaves_the_queue_as_its_client_is_judged_too_slow() -> None:
    """Its patience and a window of the least rates end at the same time: a web server is not reached for nothing."""
    limits = Limits(resend_after_s=20.0, rate_window_s=20.0)
    servers = servers_of([("web-1", "one"), ("web-2", "two")])
    traffic = Traffic(limits, servers, 0.0, max_connections=10, tls=False)
    busy, well = servers
    busy.health, well.health = Health.BUSY, Health.HEALTHY
    machine = ProxiedConnection(traffic, ClientAddress("192.0.2.1", tls=False, trusted=()), can_half_close=True)
    machine.opened()
    machine.client_bytes(b"POST / HTTP/1.1\r\nHost: a\r\nCookie: coatcheck-route=one\r\nContent-Length: 9\r\n\r\n")
    assert machine.state is State.PARKED
    machine._pace.round_over(comes=True, unsent=None)
    traffic.tick(20.0, {machine: 0}.__getitem__)
    assert not any(isinstance(action, Reach) for action in machine.actions)
    assert machine.state is State.LINGERING and traffic.errors["client_too_slow"] == 1


def test_the_end_of_a_client_before_its_upgrade_is_agreed_ends_its_half_of_the_tunnel() -> None:
    machine = fresh()
    machine._traffic.servers[0].health = Health.HEALTHY
    machine.opened()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    machine.client_bytes(b"GET / HTTP/1.1\r\nHost: a\r\n" + upgrade + b"early")
    machine.connected(reused=False, full=False)
    machine.client_eof()
    machine.server_bytes(b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade)
    tunnel = machine.join()
    assert tunnel.actions[-2:] == [ToServer(b"early"), AtEnd(TunnelSide.SERVER, TunnelOrder.END)]
