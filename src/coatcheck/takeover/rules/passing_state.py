"""What a connection has in a director that ends no TLS, and what is done with it whoever asks for that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from enum import Enum
from typing import Final

import msgspec

from coatcheck.director.rules.actions import Action, Order, ToServer
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.faults import Fault
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.traffic import Member, Traffic
from coatcheck.takeover.rules.carried import CarriedConnection
from coatcheck.takeover.rules.tls_records import BadRecord

NEVER: Final = float("inf")
ANY_NUMBER: Final = 1 << 62
"""Of bytes that wait for a client: more than there can be."""


class PassedState(Enum):
    """Where a connection is between two events."""

    NEW = "the client has said nothing yet"
    WAITING = "no web server takes connections"
    CONNECTING = "a link to a web server is being opened"
    JOINED = "a web server has it"
    CLOSING = "closed; what is still buffered leaves"
    CLOSED = "gone"


NEW, WAITING, CONNECTING, JOINED, CLOSING, CLOSED = PassedState


class Addresses(msgspec.Struct, frozen=True):
    """Both ends of a client's connection."""

    peer: tuple[str, int]
    local: tuple[str, int]


class PassingState(Member):
    """Of one client's connection."""

    __slots__ = (
        "_addresses", "_behind", "_client_full", "_counts", "_ending", "_guest", "_has_it", "_held_back", "_looked_at",
        "_moving", "_refusals", "_server_full", "_stalled_bytes", "_traffic", "_tried", "_waiting_since", "actions",
        "carried", "due_at", "server", "state",
    )  # fmt: skip

    def __init__(
        self, traffic: Traffic, guest: Guest, addresses: Addresses, max_kept_bytes: int, counts: Counter[str]
    ) -> None:
        """``guest``: as it was counted when it came; ``counts``: of what became of connections that lost a server."""
        self._traffic = traffic
        self._guest = guest
        self._addresses = addresses
        self._counts = counts
        self.carried = CarriedConnection(max_kept_bytes)
        self.actions: list[Action] = []
        self.state = NEW
        self.server: ServerState | None = None
        self.due_at = NEVER
        self._tried: Collection[ServerState] = ()
        self._refusals = 0
        self._looked_at = self._moving = self._ending = False
        self._has_it = False
        """Whether the web server has said anything: the kernel takes links for a process that is just ending, too."""
        self._client_full = self._server_full = self._held_back = False
        self._stalled_bytes = 0
        self._behind = b""
        """What the client has sent, and no web server was there to take it."""
        self._waiting_since: float | None = None

    def _rest(self) -> None:
        """The web server has the connection; it ends one that is idle for too long, and so first the longest one."""
        if not self.carried.established:
            self._await_handshake()
        elif not self._ending:
            limits = self._traffic.limits
            self.due_at = self._traffic.now + 2 * limits.keep_alive_timeout_s + limits.body_timeout_s

    def _await_handshake(self) -> None:
        self.due_at = self._traffic.now + self._traffic.limits.tls_handshake_timeout_s

    def _leave_lists(self) -> None:
        self._traffic.unpark(self)
        self._traffic.end_handshake(self)

    def _pass_on(self, data: bytes) -> None:
        try:
            records = self.carried.from_client(data)
        except BadRecord:
            self._traffic.count(Fault.BAD_REQUEST)
            self._close(Order.ABORT_CLIENT)
            return
        if records:
            self.actions.append(ToServer(records))

    def _let_go_of_server(self) -> None:
        if self.server is not None:
            self.server.in_flight -= 1
            self.server = None
        # Who is not read for its sake is read again when the next one has the connection.
        self._held_back = self._held_back or self._server_full
        self._server_full = False

    def _close(self, order: Order) -> None:
        """End it towards the client; the shell reports when it is gone."""
        if self.state in (CONNECTING, JOINED):
            self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self._leave_lists()
        self.state = CLOSING
        if not self._client_full:
            self._stalled_bytes = ANY_NUMBER
        self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s
        self.actions.append(order)
