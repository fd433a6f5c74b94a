"""The director's exchange without sockets: its table, and what must hold whatever comes in whatever order."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coatcheck.director.rules import connection
from coatcheck.director.rules.actions import Order, ReleaseServer
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


def fresh() -> ProxiedConnection:
    traffic = Traffic(Limits(), servers_of([("web-1", "one")]), 0.0, max_connections=10, tls=False)
    return ProxiedConnection(traffic, ClientAddress("192.0.2.1", tls=False, trusted=()), can_half_close=True)


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
    """Its next request begins while the answer before still waits for it: the second read of it is the last."""
    machine = fresh()
    machine.opened()
    machine.client_bytes(b"GET /.well-known/coatcheck/x HTTP/1.1\r\nHost: a\r\n\r\n")
    machine.client_full(100_000)
    assert machine.state is State.IDLE
    machine.actions.clear()
    machine.client_bytes(b"GET / HTTP/1.1\r\nX: ")
    assert machine.actions == []
    machine.client_bytes(b"x" * 100)
    assert machine.actions == [Order.PAUSE_CLIENT]
    machine.client_ready()
    assert machine.actions == [Order.PAUSE_CLIENT, Order.RESUME_CLIENT]
