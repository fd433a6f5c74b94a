"""What a client's connection knows, and the few words in which its two halves change it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from coatcheck.director.rules.actions import Action, Order
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.deadlines import Deadline, DeadlineKind
from coatcheck.director.rules.delivery import Delivery, WaitReason
from coatcheck.director.rules.durable_upgrade import Upgrade
from coatcheck.director.rules.faults import Fault
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.pace import ClientPace
from coatcheck.director.rules.request_head import RequestFields, RequestHead
from coatcheck.director.rules.request_stream import RequestStream
from coatcheck.director.rules.response_stream import ResponseStream
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.traffic import Member, Traffic
from coatcheck.director.rules.transitions import State

PIPELINED: Final = 1
"""Why a client is not read: it has sent the next request before this one was answered."""
BODY_HELD: Final = 2
"""Why a client is not read: the web server takes no more of the body for now, or there is none yet."""

_ENDING: Final = (State.LINGERING, State.CLOSING, State.CLOSED)
_UNDER_WAY: Final = (State.PARKED, State.CONNECTING, State.SENT, State.HELD, State.REPLYING)
_HELD, _IDLE, _PARKED, _TUNNEL = State.HELD, State.IDLE, State.PARKED, State.TUNNEL


class ConnectionState(Member):
    """One connection of a client, and the exchange that is under way on it."""

    __slots__ = (
        "_address", "_began_at", "_can_half_close", "_client_full", "_close", "_continued", "_cookies", "_delivery",
        "_due", "_fresh_only", "_guest", "_guest_behind", "_half_closed", "_head", "_held", "_kept", "_kept_bytes",
        "_known_fields", "_limits", "_no_server_since", "_pace", "_pause", "_pauses", "_request", "_response",
        "_reused", "_sent_at", "_server_full", "_server_paused", "_stalled_bytes", "_status", "_stream", "_tag",
        "_tail", "_taken_at", "_traffic", "_upgrade", "_waiting_since", "actions", "begun_before", "due_at", "is_last",
        "sends_before", "server", "state",
    )  # fmt: skip

    # Of the exchange, set with every request.
    _began_at: float
    """By the shared clock, when its head was whole."""
    _close: bool
    """Whether the client's connection ends with this response."""
    _continued: bool
    _delivery: Delivery
    _fresh_only: bool
    _head: RequestHead
    _kept: list[bytes] | None
    """Pieces of the body as they go over the wire; ``None`` once they are no longer held."""
    _kept_bytes: int
    _no_server_since: float
    _pause: WaitReason | None
    _request: bytes
    _reused: bool
    _sent_at: float
    _status: int
    """Of the answer, once it begins."""
    _waiting_since: float | None

    def __init__(
        self, traffic: Traffic, address: ClientAddress, *, can_half_close: bool, guest: Guest | None = None
    ) -> None:
        """``can_half_close``: whether our side can end alone; ``guest``: if it was counted before its handshake."""
        limits = traffic.limits
        self._traffic = traffic
        self._limits = limits
        self._upgrade: Upgrade | None = None
        """How its durable WebSocket began, if it has become one."""
        self._address = address
        self._can_half_close = can_half_close
        self._guest = guest
        self._guest_behind: Guest | None = None
        self.state = State.NEW
        self.actions: list[Action] = []
        """What the shell is to do, in this order; it empties the list."""
        self._due = DeadlineKind.HEADER
        self.due_at = traffic.now + limits.header_timeout_s
        self._stream = RequestStream(traffic.reader, limits.max_head_bytes)
        self._response = ResponseStream(traffic.response_reader, limits.max_response_head_bytes)
        self._pace = ClientPace()
        self._pauses = 0
        self._half_closed = self._client_full = False
        self._stalled_bytes = 0
        self._taken_at = traffic.now
        self._known_fields: RequestFields | None = None
        self._tail = b""
        self._cookies = b""
        self._tag: bytes | None = None
        self.server: ServerState | None = None
        """The web server that has the request, or that a connection is being opened to."""
        self._server_full = self._server_paused = False
        self._held: list[bytes] = []
        self.sends_before = 0
        """How many web servers have had the requests that come before this connection is idle."""
        self.is_last = False
        """Whether the connection ends with the response that is under way, or the next one."""
        self.begun_before = False
        """Whether one of those may have begun what must not be done twice."""

    @property
    def deadline(self) -> Deadline:
        """What has to happen next, and by when."""
        takes = self._client_full and not self.is_ending
        return Deadline(DeadlineKind.CLIENT_TAKES if takes else self._due, self.due_at)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way here, not even the beginning of a request."""
        return self.state is _IDLE

    @property
    def is_under_way(self) -> bool:
        """Whether there is a request that was not answered in full."""
        return self.state in _UNDER_WAY

    @property
    def is_ending(self) -> bool:
        """Whether our side has ended, or will when all that waits for the client has left."""
        return self.state in _ENDING

    def _await(self, kind: DeadlineKind, seconds: float) -> None:
        self._due = kind
        self.due_at = self._traffic.now + seconds

    def _await_bytes(self) -> None:
        """The next bytes are due: of the body that still comes, of the answer, or of a response that has begun."""
        if self.state is _HELD or self.state is _PARKED:
            return
        limits = self._limits
        if not self._stream.body_done:
            self._await(DeadlineKind.BODY, limits.body_timeout_s)
        elif self._delivery.replied:
            self._await(DeadlineKind.RESPONSE, limits.body_timeout_s)
        else:
            self._await(DeadlineKind.ANSWER, limits.first_byte_timeout_s)

    # Reading the client, or not

    def _pause_client(self, why: int) -> None:
        if not self._pauses:
            self.actions.append(Order.PAUSE_CLIENT)
        self._pauses |= why

    def _resume_client(self, why: int) -> None:
        if self._pauses == why:
            self.actions.append(Order.RESUME_CLIENT)
        self._pauses &= ~why

    def _hold_body(self) -> None:
        """The web server takes no more of the body for now."""
        if not self._stream.body_done:
            self._pace.begin_body()
            self._pause_client(BODY_HELD)

    def _release_body(self) -> None:
        """The web server takes bytes again, or needs no more of them."""
        if self._pauses & BODY_HELD:
            self._resume_client(BODY_HELD)

    # What the half towards the web servers asks of the half towards the client

    @abstractmethod
    def _fail(self, status: int, fault: Fault) -> None:
        """The current request cannot be served: say so, or, in the midst of a response, break it off."""

    @abstractmethod
    def _response_done(self) -> None:
        """The response has been written in full: on to the next request, or to the end."""
