"""A client's connection in a director that ends no TLS: to which web server it goes, and who has it after that one.

Events come in as calls, what is to be done comes out in :attr:`PassedConnection.actions`; the words are those of the
director's other machine (``director/rules/actions``), and so is the traffic that both belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from enum import Enum
from typing import Final

import msgspec

from coatcheck.director.rules.actions import Action, Order, Reach, ToClient, ToServer
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.faults import FAULT_OF_FAILURE, Fault
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Member, Traffic
from coatcheck.takeover.rules.affinity import preferred
from coatcheck.takeover.rules.carried import CarriedConnection, Loss, ServerSays
from coatcheck.takeover.rules.inner_frames import Frame, frame
from coatcheck.takeover.rules.tls_records import BadRecord, RecordSplitter

_NEVER: Final = float("inf")
_ANY_NUMBER: Final = 1 << 62
"""Of bytes that wait for a client: more than there can be."""
_MAX_REFUSALS: Final = 16
"""Connections to web servers that one client's connection may be refused in a row."""


class PassedState(Enum):
    """Where a connection is between two events."""

    NEW = "the client has said nothing yet"
    WAITING = "no web server takes connections"
    CONNECTING = "a link to a web server is being opened"
    JOINED = "a web server has it"
    CLOSING = "closed; what is still buffered leaves"
    CLOSED = "gone"


_NEW, _WAITING, _CONNECTING, _JOINED, _CLOSING, _CLOSED = PassedState


class Addresses(msgspec.Struct, frozen=True):
    """Both ends of a client's connection."""

    peer: tuple[str, int]
    local: tuple[str, int]


class PassedConnection(Member):
    """One client's connection, of which the records' headers alone are read."""

    __slots__ = (
        "_addresses", "_behind", "_client_full", "_counts", "_ending", "_guest", "_held_back", "_looked_at", "_moving",
        "_refusals", "_server_full", "_stalled_bytes", "_traffic", "_tried", "_waiting_since", "actions", "carried",
        "due_at", "server", "state",
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
        self.state = _NEW
        self.server: ServerState | None = None
        self.due_at = _NEVER
        self._tried: Collection[ServerState] = ()
        self._refusals = 0
        self._looked_at = self._moving = self._ending = False
        self._client_full = self._server_full = self._held_back = False
        self._stalled_bytes = 0
        self._behind = b""
        """What the client has sent, and no web server was there to take it."""
        self._waiting_since: float | None = None

    # What the traffic asks of its members

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that the director can see."""
        if self.state is _NEW:
            return True
        return self.state in (_WAITING, _JOINED) and self.carried.is_settled and not self._behind

    @property
    def is_under_way(self) -> bool:
        return self.state in (_WAITING, _CONNECTING, _JOINED) and not (self.carried.is_settled and not self._behind)

    def woken(self, admitted: ServerState | None) -> None:
        """The health of a web server changed while this one waited."""
        if self.state is _WAITING:
            if admitted is not None:
                self._tried = ()
            self._choose()

    def server_died(self) -> None:
        """The process that has it has ended. What it has said on its link counts, and may not have been read."""
        if self.state is _JOINED:
            self.actions.append(Order.END_SERVER)
        elif self.state is _CONNECTING:
            self._server_gone()

    def busy_tick(self) -> None:
        """Silence is no death: a busy web server keeps its connections."""

    def rate_window_over(self, unsent: int) -> None:
        """The web server judges the pace of its clients: it sees what is asked."""

    def close_idle(self) -> None:
        """The director needs the room: the web server says goodbye, if it does so at once."""
        if self.state is not _JOINED:
            self._close(Order.CLOSE_CLIENT)
        elif not self._ending:
            self.end_when_idle()
            self.due_at = self._traffic.now + self._traffic.limits.linger_s

    def end_when_idle(self) -> None:
        """The director stops: no further request is begun, and the client is told so by the web server."""
        if self.state is _NEW:
            self._close(Order.CLOSE_CLIENT)
        elif self.state is _JOINED and not self._ending:
            self._ending = True
            self.actions.append(ToServer(frame(Frame.END)))

    def drop(self) -> None:
        """Its handshake is one too many."""
        if self.state not in (_CLOSING, _CLOSED):
            self._close(Order.ABORT_CLIENT)

    def deadline_reached(self, unsent: int) -> None:
        """:attr:`due_at` has passed; ``unsent`` bytes wait for the client."""
        limits = self._traffic.limits
        if self.state is _CLOSING or self._client_full:
            if 0 < unsent < self._stalled_bytes:
                # Slow, but it takes what is there.
                self._stalled_bytes = unsent
                self.due_at = self._traffic.now + limits.body_timeout_s
            elif self.state is _CLOSING:
                self.actions.append(Order.RESET_CLIENT)
                self.due_at = _NEVER
            else:
                self._traffic.count(Fault.CLIENT_TIMEOUT)
                self._close(Order.RESET_CLIENT)
        elif self._ending:
            self._close(Order.CLOSE_CLIENT)
        elif self.state is _WAITING:
            self._traffic.count(Fault.NO_SERVER)
            self._close(Order.ABORT_CLIENT)
        elif not self.carried.established:
            self._traffic.count(Fault.HANDSHAKE_FAILED)
            self._close(Order.ABORT_CLIENT)
        else:
            self.due_at = _NEVER

    # Events

    def opened(self) -> None:
        """It was accepted, and there is room for it."""
        self._traffic.connections[self] = None
        self._traffic.begin_handshake(self)
        self._await_handshake()

    def client_bytes(self, data: bytes) -> None:
        """Bytes came from the client."""
        if self.state in (_CLOSING, _CLOSED):
            return
        if self.state is _JOINED and not self._is_being_released and not self._behind:
            self._pass_on(data)
            return
        # What has come is held; more need not come before there is a web server for it.
        self._behind += data
        if self.state is _NEW and not self._says_hello():
            return
        if not self._held_back:
            self._held_back = True
            self.actions.append(Order.PAUSE_CLIENT)
        if self.state is _NEW:
            self._choose()
        elif self.state is _WAITING and self.due_at == _NEVER:
            self.due_at = self._traffic.now + self._traffic.limits.no_server_wait_s

    def _says_hello(self) -> bool:
        """Whether a whole record has come: before that no web server is troubled."""
        try:
            return bool(RecordSplitter().feed(self._behind))
        except BadRecord:
            self._traffic.count(Fault.BAD_REQUEST)
            self._close(Order.ABORT_CLIENT)
            return False

    @property
    def _is_being_released(self) -> bool:
        """Whether its web server has let go of it, or will as soon as it hears that it has to."""
        return self._moving and bool(self.carried.state) and self.carried.is_settled

    def _pass_on(self, data: bytes) -> None:
        try:
            records = self.carried.from_client(data)
        except BadRecord:
            self._traffic.count(Fault.BAD_REQUEST)
            self._close(Order.ABORT_CLIENT)
            return
        if records:
            self.actions.append(ToServer(records))

    def client_lost(self) -> None:
        """The client's connection is gone, or its side has ended: TLS has no half of a connection."""
        if self.state is _CLOSED:
            return
        if self.state in (_CONNECTING, _JOINED):
            self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self._leave_lists()
        self.state = _CLOSED
        self.due_at = _NEVER
        self._traffic.connections.pop(self, None)
        self._guest.leave()

    def client_full(self, unsent: int) -> None:
        """The client does not take what is written."""
        self._client_full = True
        self._stalled_bytes = unsent
        if self.state is _JOINED:
            self.actions.append(Order.PAUSE_SERVER)
            self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s

    def client_ready(self) -> None:
        """The client takes bytes again."""
        self._client_full = False
        if self.state is _JOINED:
            self.actions.append(Order.RESUME_SERVER)
            self._rest()

    def server_full(self) -> None:
        """The web server does not take what is written."""
        self._server_full = True
        if not self._held_back and self.state is not _CLOSING:
            self.actions.append(Order.PAUSE_CLIENT)

    def server_ready(self) -> None:
        """The web server takes bytes again."""
        self._server_full = False
        if not self._held_back and self.state is not _CLOSING:
            self.actions.append(Order.RESUME_CLIENT)

    def connected(self, *, reused: bool, full: bool) -> None:
        """A link was had."""
        assert self.state is _CONNECTING and self.server is not None
        self.state = _JOINED
        self._refusals = 0
        self._server_full = full
        said = self.carried.give(self._addresses.peer, self._addresses.local, looked_at=self._looked_at)
        self.actions.append(ToServer(said))
        if self._client_full:
            self.actions.append(Order.PAUSE_SERVER)
        if self._held_back and not full:
            self.actions.append(Order.RESUME_CLIENT)
        elif full and not self._held_back:
            self.actions.append(Order.PAUSE_CLIENT)
        self._held_back = False
        if self._client_full:
            self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s
        else:
            self._rest()
        behind, self._behind = self._behind, b""
        if behind:
            self._pass_on(behind)
        if self.server is not None and self.server.draining:
            self.draining()
        if self._traffic.stopping:
            self.end_when_idle()

    def not_connected(self, failure: Failure) -> None:
        """No link was to be had."""
        assert self.state is _CONNECTING and self.server is not None
        server = self.server
        self._let_go_of_server()
        self.state = _WAITING
        if failure is not Failure.STALLED:
            self._tried = [*self._tried, server]
        self._refusals += 1
        if self._refusals > _MAX_REFUSALS:
            self._traffic.count(FAULT_OF_FAILURE[failure])
            self._close(Order.ABORT_CLIENT)
            return
        self._choose()

    def server_bytes(self, data: bytes) -> None:
        """Bytes came from the web server."""
        if self.state is not _JOINED:
            return
        self._traffic.heard(self.server)
        try:
            out, said = self.carried.from_server(data)
        except BadRecord:
            self._traffic.count(Fault.BAD_RESPONSE)
            self._close(Order.ABORT_CLIENT)
            return
        if out:
            self.actions.append(ToClient(out))
        if self.carried.established and not self._client_full and not self._ending:
            self._rest()
        for word in said:
            if word is ServerSays.ESTABLISHED:
                self._traffic.end_handshake(self)
            elif word is ServerSays.RELEASED:
                self._released()
                return
            else:
                self._close(Order.CLOSE_CLIENT if word is ServerSays.CLOSE else Order.RESET_CLIENT)
                return

    def server_ended(self, ending: Ending) -> None:
        """The link has ended, and it did not say that the connection is over."""
        if self.state is _JOINED:
            assert self.server is not None
            self._traffic.check_now(self.server)
            self._server_gone()

    def draining(self) -> None:
        """Its web server is to have no more connections: another one goes on as soon as nothing is under way."""
        if self.state is _JOINED and not self._moving and self.carried.may_be_given:
            self._moving = True
            self.actions.append(ToServer(frame(Frame.MOVE)))

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

    # Who goes on

    def _released(self) -> None:
        self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self.state = _WAITING
        if not self.carried.is_kept_whole:
            self._broken_off(Loss.NOT_KEPT)
            return
        self._counts["moved"] += 1
        self._looked_at = False
        self._tried = ()
        self._choose()

    def _server_gone(self) -> None:
        server = self.server
        assert server is not None
        was_joined = self.state is _JOINED
        self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self.state = _WAITING
        if not was_joined:
            self._tried = [server]
            self._choose()
            return
        loss = self.carried.loss()
        if not loss.goes_on:
            self._broken_off(loss)
            return
        self._counts[loss.name.lower()] += 1
        self._looked_at = loss is Loss.RESUME
        self._tried = [server]
        self._traffic.retries += 1
        self._choose()

    def _broken_off(self, loss: Loss) -> None:
        self._counts[loss.name.lower()] += 1
        self._traffic.count(Fault.UPSTREAM_LOST)
        self._close(Order.RESET_CLIENT)

    def _choose(self) -> None:
        traffic = self._traffic
        first = preferred(self._addresses.peer[0], traffic.servers)
        chosen = traffic.balancer.choose(first.tag if first is not None else None, self._tried, patient=False)
        if chosen is None:
            self._wait()
            return
        self._waiting_since = None
        self.state = _CONNECTING
        self.server = chosen
        chosen.in_flight += 1
        chosen.requests += 1
        self._moving = False
        self.actions.append(Reach(chosen, certain=True, fresh=True))

    def _wait(self) -> None:
        traffic = self._traffic
        self.state = _WAITING
        if self._waiting_since is None:
            self._waiting_since = traffic.now
            # Who asks for nothing at the moment waits for as long as it likes.
            self.due_at = _NEVER if self.is_idle else traffic.now + traffic.limits.no_server_wait_s
        if not traffic.park(self):
            traffic.count(Fault.NO_SERVER)
            self._close(Order.ABORT_CLIENT)

    def _let_go_of_server(self) -> None:
        if self.server is not None:
            self.server.in_flight -= 1
            self.server = None
        # Who is not read for its sake is read again when the next one has the connection.
        self._held_back = self._held_back or self._server_full
        self._server_full = False

    def _close(self, order: Order) -> None:
        """End it towards the client; the shell reports when it is gone."""
        if self.state in (_CONNECTING, _JOINED):
            self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self._leave_lists()
        self.state = _CLOSING
        if not self._client_full:
            self._stalled_bytes = _ANY_NUMBER
        self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s
        self.actions.append(order)
