"""The life of a client's connection as a table: in which state which event may come, and where it may lead.

What is not listed is a mistake of the shell and raises :class:`ProtocolError`. The machine is built from this table
(``connection.py``), and random walks hold it to it: no event leads elsewhere, and every listed one comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from coatcheck.errors import CoatcheckError


class State(Enum):
    """Where a connection is between two events."""

    __hash__ = object.__hash__  # That of Enum is written in Python, and every event looks its state up.

    NEW = "accepted; nobody has asked yet whether there is room for it"
    IDLE = "no byte of a request has come"
    HEAD = "a request has begun and its head is not whole, or not its turn"
    PARKED = "a request waits in the queue for a web server"
    CONNECTING = "a connection to a web server was asked for"
    SENT = "the request was written; its response has not begun"
    HELD = "the response has begun and is held until it is whole, so that it can still be had elsewhere"
    REPLYING = "a part of the response has left for the client"
    TUNNEL = "both connections belong to a tunnel now"
    LINGERING = "we have said all and swallow what still comes"
    CLOSING = "closed; what is still buffered leaves"
    CLOSED = "gone"


class ConnectionEvent(Enum):
    """What a shell reports; the names are those of the machine's methods."""

    OPENED = "opened"
    CLIENT_BYTES = "client_bytes"
    CLIENT_EOF = "client_eof"
    CLIENT_LOST = "client_lost"
    CLIENT_FULL = "client_full"
    CLIENT_READY = "client_ready"
    GO_ON = "go_on"
    CONNECTED = "connected"
    NOT_CONNECTED = "not_connected"
    SERVER_BYTES = "server_bytes"
    SERVER_ENDED = "server_ended"
    SERVER_FULL = "server_full"
    SERVER_READY = "server_ready"
    SERVER_DIED = "server_died"
    WOKEN = "woken"
    BUSY_TICK = "busy_tick"
    DEADLINE = "deadline_reached"
    RATE_WINDOW = "rate_window_over"
    CLOSE_IDLE = "close_idle"


class ProtocolError(CoatcheckError):
    """A shell reported an event that cannot come in this state: its mistake, not the client's or the web server's."""

    def __init__(self, state: State, event: ConnectionEvent) -> None:
        super().__init__(f"director: {event.value} cannot come to a connection in state {state.name}")
        self.state = state
        self.event = event


_S = State
_QUIET: Final = frozenset({_S.IDLE, _S.HEAD})
"""A response has ended, or was given by the director itself, and the connection goes on."""
_ENDING: Final = frozenset({_S.LINGERING, _S.CLOSING})
"""The connection ends after a refusal, an error, or its last response."""
_ASKED: Final = frozenset({_S.PARKED, _S.CONNECTING})
"""A web server was chosen for the request, or is waited for."""
_OVER: Final = _QUIET | _ENDING


def _same(*states: State) -> dict[State, frozenset[State]]:
    return {state: frozenset({state}) for state in states}


_WITH_REQUEST: Final = (_S.PARKED, _S.CONNECTING, _S.SENT, _S.HELD, _S.REPLYING)
_WITH_SERVER: Final = (_S.SENT, _S.HELD, _S.REPLYING)
_ALIVE: Final = (_S.IDLE, _S.HEAD, *_WITH_REQUEST, _S.LINGERING, _S.CLOSING)
_FAILED: Final = _ASKED | _OVER
"""A web server failed the request: it is delivered anew, waits, or is answered by the director."""

TRANSITIONS: Final[Mapping[ConnectionEvent, Mapping[State, frozenset[State]]]] = {
    ConnectionEvent.OPENED: {_S.NEW: frozenset({_S.IDLE}) | _ENDING},
    ConnectionEvent.CLIENT_BYTES: {
        _S.IDLE: frozenset({_S.IDLE, _S.HEAD}) | _ASKED | _ENDING,
        _S.HEAD: frozenset({_S.IDLE, _S.HEAD}) | _ASKED | _ENDING,
        **{state: frozenset({state}) | _ENDING for state in _WITH_REQUEST},
        _S.REPLYING: frozenset({_S.REPLYING, _S.CLOSING}),
        **_same(_S.LINGERING, _S.CLOSING),
    },
    ConnectionEvent.CLIENT_EOF: {
        _S.IDLE: frozenset({_S.CLOSING}),
        **{state: frozenset({state, _S.CLOSING}) for state in _WITH_REQUEST},
        _S.HEAD: frozenset({_S.HEAD}),
        _S.LINGERING: frozenset({_S.CLOSING}),
        **_same(_S.CLOSING),
    },
    ConnectionEvent.CLIENT_LOST: {state: frozenset({_S.CLOSED}) for state in _ALIVE},
    ConnectionEvent.CLIENT_FULL: _same(*_ALIVE, _S.TUNNEL),
    ConnectionEvent.CLIENT_READY: {
        **_same(*_ALIVE),
        _S.HEAD: _QUIET | _ASKED | _ENDING,
    },
    ConnectionEvent.GO_ON: {
        _S.HEAD: _QUIET | _ASKED | _ENDING,
        **_same(*_WITH_REQUEST, _S.IDLE, _S.LINGERING, _S.CLOSING, _S.CLOSED),
    },
    ConnectionEvent.CONNECTED: {_S.CONNECTING: frozenset({_S.SENT})},
    ConnectionEvent.NOT_CONNECTED: {_S.CONNECTING: _FAILED},
    ConnectionEvent.SERVER_BYTES: {
        _S.SENT: frozenset({_S.SENT, _S.HELD, _S.REPLYING, _S.TUNNEL}) | _OVER,
        _S.HELD: frozenset({_S.HELD}) | _OVER,
        _S.REPLYING: frozenset({_S.REPLYING}) | _OVER,
    },
    ConnectionEvent.SERVER_ENDED: {_S.SENT: _FAILED, _S.HELD: _FAILED, _S.REPLYING: _ENDING},
    ConnectionEvent.SERVER_FULL: _same(*_WITH_SERVER),
    ConnectionEvent.SERVER_READY: _same(*_WITH_SERVER),
    ConnectionEvent.SERVER_DIED: {
        **_same(_S.CONNECTING),
        _S.SENT: _FAILED,
        _S.HELD: _FAILED,
        _S.REPLYING: frozenset({_S.CLOSING}),
    },
    ConnectionEvent.WOKEN: {_S.PARKED: _ASKED},
    ConnectionEvent.BUSY_TICK: {
        _S.PARKED: _ASKED,
        **_same(_S.CONNECTING, _S.REPLYING),
        _S.SENT: frozenset({_S.SENT}) | _FAILED,
        _S.HELD: frozenset({_S.HELD}) | _FAILED,
    },
    ConnectionEvent.DEADLINE: {
        _S.IDLE: frozenset({_S.IDLE, _S.CLOSING}),
        _S.HEAD: frozenset({_S.HEAD}) | _ENDING,
        **{state: frozenset({state}) | _OVER for state in (_S.PARKED, _S.CONNECTING, _S.SENT)},
        _S.HELD: frozenset({_S.HELD, _S.REPLYING, _S.CLOSING}),
        _S.REPLYING: frozenset({_S.REPLYING, _S.CLOSING}),
        **{state: frozenset({state, _S.CLOSING}) for state in _ENDING},
    },
    ConnectionEvent.RATE_WINDOW: {
        **{state: frozenset({state}) | _ENDING for state in _WITH_REQUEST},
        **{state: frozenset({state, _S.CLOSING}) for state in (_S.IDLE, _S.HEAD, _S.REPLYING, *_ENDING)},
    },
    ConnectionEvent.CLOSE_IDLE: {_S.IDLE: frozenset({_S.CLOSING})},
}
"""From each event, and the state in which it comes, to the states in which it may leave the connection."""
