"""A client's connection without a socket: its requests, one after another, each to a web server and its answer back.

Events come in as calls; what is to be done comes out in :attr:`ProxiedConnection.actions`, in order, and the one
deadline in :attr:`ProxiedConnection.deadline`. ``transitions.py`` says which event may come when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from coatcheck.director.rules.client_half import ClientHalf
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.transitions import TRANSITIONS, ConnectionEvent, ProtocolError, State


class ProxiedConnection(ClientHalf):
    """The machine of one client's connection: the director's decisions, and none of its sockets."""

    __slots__ = ()

    # Events. Each is looked up by state; what may not come raises ProtocolError.

    def opened(self) -> None:
        """It was accepted, and its handshake done: is there room for it?"""
        _ON_OPENED[self.state](self)

    def client_bytes(self, data: bytes) -> None:
        """Bytes came from the client."""
        _ON_CLIENT_BYTES[self.state](self, data)

    def client_eof(self) -> None:
        """The client has ended its side; it may still wait for answers (RFC 9112, 9.6)."""
        _ON_CLIENT_EOF[self.state](self)

    def client_lost(self) -> None:
        """The client's connection is gone."""
        _ON_CLIENT_LOST[self.state](self)

    def client_full(self, unsent: int) -> None:
        """The client does not take what is written: ``unsent`` bytes wait for it, more than there should."""
        _ON_CLIENT_FULL[self.state](self, unsent)

    def client_ready(self) -> None:
        """The client takes bytes again."""
        _ON_CLIENT_READY[self.state](self)

    def go_on(self) -> None:
        """The round of the event loop that was asked for has come."""
        _ON_GO_ON[self.state](self)

    def connected(self, *, reused: bool, full: bool) -> None:
        """A connection was had. ``reused``: an unused one; ``full``: it takes no bytes for now."""
        _ON_CONNECTED[self.state](self, reused, full)

    def not_connected(self, failure: Failure) -> None:
        """No connection was to be had."""
        _ON_NOT_CONNECTED[self.state](self, failure)

    def server_bytes(self, data: bytes) -> None:
        """Bytes came from the web server that was reached."""
        _ON_SERVER_BYTES[self.state](self, data)

    def server_ended(self, ending: Ending) -> None:
        """The connection to the web server has ended."""
        _ON_SERVER_ENDED[self.state](self, ending)

    def server_full(self) -> None:
        """The web server does not take what is written."""
        _ON_SERVER_FULL[self.state](self)

    def server_ready(self) -> None:
        """The web server takes bytes again."""
        _ON_SERVER_READY[self.state](self)

    def server_died(self) -> None:
        """The process that has the request has ended."""
        _ON_SERVER_DIED[self.state](self)

    def woken(self, admitted: ServerState | None) -> None:
        """The queue is thought over; ``admitted``: a web server that takes requests again."""
        _ON_WOKEN[self.state](self, admitted)

    def busy_tick(self) -> None:
        """Time has passed, and some web server is busy."""
        _ON_BUSY_TICK[self.state](self)

    def deadline_reached(self, unsent: int) -> None:
        """:attr:`deadline` has passed; ``unsent`` bytes wait for the client."""
        _ON_DEADLINE[self.state](self, unsent)

    def rate_window_over(self, unsent: int) -> None:
        """A window of the least rates is over; ``unsent`` bytes wait for the client."""
        _ON_RATE_WINDOW[self.state](self, unsent)

    def close_idle(self) -> None:
        """The director stops, or needs the room: end a connection on which nothing is under way."""
        _ON_CLOSE_IDLE[self.state](self)

    def _ignore(self, *_: object) -> None:
        """Nothing is to be done: what was meant has already come about, or does not matter any more."""


# A handler is given the connection and what the event carries.
_Handler = Callable[..., None]
_C: Final = ProxiedConnection
_WITH_REQUEST: Final = (State.PARKED, State.CONNECTING, State.SENT, State.HELD, State.REPLYING)
_WITH_SERVER: Final = (State.SENT, State.HELD, State.REPLYING)

_HANDLERS: Final[dict[ConnectionEvent, dict[State, _Handler]]] = {
    ConnectionEvent.OPENED: {State.NEW: _C._enter},
    ConnectionEvent.CLIENT_BYTES: {
        State.IDLE: _C._take_head,
        State.HEAD: _C._take_more_of_head,
        **dict.fromkeys(_WITH_REQUEST, _C._take_behind_head),
    },
    ConnectionEvent.CLIENT_EOF: {
        State.IDLE: _C._eof_before_a_request,
        State.HEAD: _C._eof_in_buffered_bytes,
        **dict.fromkeys(_WITH_REQUEST, _C._eof_behind_a_request),
        State.LINGERING: _C._eof_before_a_request,
    },
    ConnectionEvent.CLIENT_LOST: dict.fromkeys(State, _C._client_gone),
    ConnectionEvent.CLIENT_FULL: {
        **dict.fromkeys(State, _C._note_client_full),
        **dict.fromkeys(_WITH_SERVER, _C._client_full_in_exchange),
    },
    ConnectionEvent.CLIENT_READY: {
        **dict.fromkeys(State, _C._note_client_ready),
        State.HEAD: _C._client_ready_for_next,
        **dict.fromkeys(_WITH_SERVER, _C._client_ready_in_exchange),
    },
    ConnectionEvent.GO_ON: {State.HEAD: _C._next},
    ConnectionEvent.CONNECTED: {State.CONNECTING: _C._connected},
    ConnectionEvent.NOT_CONNECTED: {State.CONNECTING: _C._not_connected},
    ConnectionEvent.SERVER_BYTES: {
        State.SENT: _C._take_response_head,
        State.HELD: _C._hold_response_body,
        State.REPLYING: _C._take_response_body,
    },
    ConnectionEvent.SERVER_ENDED: dict.fromkeys(_WITH_SERVER, _C._server_ended),
    ConnectionEvent.SERVER_FULL: dict.fromkeys(State, _C._note_server_full),
    ConnectionEvent.SERVER_READY: dict.fromkeys(State, _C._note_server_ready),
    ConnectionEvent.SERVER_DIED: dict.fromkeys(_WITH_SERVER, _C._server_died),
    ConnectionEvent.WOKEN: {State.PARKED: _C._woken},
    ConnectionEvent.BUSY_TICK: {
        State.PARKED: _C._parked_busy_tick,
        State.SENT: _C._sent_busy_tick,
        State.HELD: _C._sent_busy_tick,
    },
    ConnectionEvent.DEADLINE: {
        **dict.fromkeys(State, _C._overdue),
        State.LINGERING: _C._end_overdue,
        State.CLOSING: _C._end_overdue,
    },
    ConnectionEvent.RATE_WINDOW: {
        **dict.fromkeys(State, _C._judge_pace),
    },
    ConnectionEvent.CLOSE_IDLE: {State.IDLE: _C._close_idle},
}
"""What is done about an event that the table lists; where nothing stands, nothing."""


class _Handlers(dict[State, _Handler]):
    """The handlers of one event."""

    def __init__(self, event: ConnectionEvent) -> None:
        handlers = _HANDLERS[event]
        super().__init__({state: handlers.get(state, _C._ignore) for state in TRANSITIONS[event]})
        self._event = event

    def __missing__(self, state: State) -> Any:
        raise ProtocolError(state, self._event)


_ON_OPENED: Final = _Handlers(ConnectionEvent.OPENED)
_ON_CLIENT_BYTES: Final = _Handlers(ConnectionEvent.CLIENT_BYTES)
_ON_CLIENT_EOF: Final = _Handlers(ConnectionEvent.CLIENT_EOF)
_ON_CLIENT_LOST: Final = _Handlers(ConnectionEvent.CLIENT_LOST)
_ON_CLIENT_FULL: Final = _Handlers(ConnectionEvent.CLIENT_FULL)
_ON_CLIENT_READY: Final = _Handlers(ConnectionEvent.CLIENT_READY)
_ON_GO_ON: Final = _Handlers(ConnectionEvent.GO_ON)
_ON_CONNECTED: Final = _Handlers(ConnectionEvent.CONNECTED)
_ON_NOT_CONNECTED: Final = _Handlers(ConnectionEvent.NOT_CONNECTED)
_ON_SERVER_BYTES: Final = _Handlers(ConnectionEvent.SERVER_BYTES)
_ON_SERVER_ENDED: Final = _Handlers(ConnectionEvent.SERVER_ENDED)
_ON_SERVER_FULL: Final = _Handlers(ConnectionEvent.SERVER_FULL)
_ON_SERVER_READY: Final = _Handlers(ConnectionEvent.SERVER_READY)
_ON_SERVER_DIED: Final = _Handlers(ConnectionEvent.SERVER_DIED)
_ON_WOKEN: Final = _Handlers(ConnectionEvent.WOKEN)
_ON_BUSY_TICK: Final = _Handlers(ConnectionEvent.BUSY_TICK)
_ON_DEADLINE: Final = _Handlers(ConnectionEvent.DEADLINE)
_ON_RATE_WINDOW: Final = _Handlers(ConnectionEvent.RATE_WINDOW)
_ON_CLOSE_IDLE: Final = _Handlers(ConnectionEvent.CLOSE_IDLE)
