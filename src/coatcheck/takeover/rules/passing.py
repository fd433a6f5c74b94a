"""A client's connection in a director that ends no TLS: what its client does, and what the traffic asks of it.

Events come in as calls, what is to be done comes out in :attr:`PassedConnection.actions`; the words are those of the
director's other machine (``director/rules/actions``), and so is the traffic that both belong to.
"""

from __future__ import annotations

from coatcheck.director.rules.actions import Order
from coatcheck.director.rules.faults import Fault
from coatcheck.takeover.rules.passing_servers import PassingServers
from coatcheck.takeover.rules.passing_state import CLOSED, CLOSING, CONNECTING, JOINED, NEVER, NEW, WAITING
from coatcheck.takeover.rules.tls_records import BadRecord, RecordSplitter


class PassedConnection(PassingServers):
    """One client's connection, of which the records' headers alone are read."""

    __slots__ = ()

    # What the traffic asks of its members

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way that the director can see."""
        if self.state is NEW:
            return True
        return self.state in (WAITING, JOINED) and self.carried.is_settled and not self._behind

    @property
    def is_under_way(self) -> bool:
        return self.state in (WAITING, CONNECTING, JOINED) and not (self.carried.is_settled and not self._behind)

    def busy_tick(self) -> None:
        """Silence is no death: a busy web server keeps its connections."""

    def rate_window_over(self, unsent: int) -> None:
        """The web server judges the pace of its clients: it sees what is asked."""

    def close_idle(self) -> None:
        """The director needs the room: the web server says goodbye, if it does so at once."""
        if self.state is not JOINED:
            self._close(Order.CLOSE_CLIENT)
        elif not self._ending:
            self.end_when_idle()
            self.due_at = self._traffic.now + self._traffic.limits.linger_s

    def drop(self) -> None:
        """Its handshake is one too many."""
        if self.state not in (CLOSING, CLOSED):
            self._close(Order.ABORT_CLIENT)

    def deadline_reached(self, unsent: int) -> None:
        """:attr:`due_at` has passed; ``unsent`` bytes wait for the client."""
        limits = self._traffic.limits
        if self.state is CLOSING or self._client_full:
            if 0 < unsent < self._stalled_bytes:
                # Slow, but it takes what is there.
                self._stalled_bytes = unsent
                self.due_at = self._traffic.now + limits.body_timeout_s
            elif self.state is CLOSING:
                self.actions.append(Order.RESET_CLIENT)
                self.due_at = NEVER
            else:
                self._traffic.count(Fault.CLIENT_TIMEOUT)
                self._close(Order.RESET_CLIENT)
        elif self._ending:
            self._close(Order.CLOSE_CLIENT)
        elif self.state is WAITING:
            self._traffic.count(Fault.NO_SERVER)
            self._close(Order.ABORT_CLIENT)
        elif not self.carried.established:
            self._traffic.count(Fault.HANDSHAKE_FAILED)
            self._close(Order.ABORT_CLIENT)
        else:
            self.due_at = NEVER

    # Events

    def opened(self) -> None:
        """It was accepted, and there is room for it."""
        self._traffic.connections[self] = None
        self._traffic.begin_handshake(self)
        self._await_handshake()

    def client_bytes(self, data: bytes) -> None:
        """Bytes came from the client."""
        if self.state in (CLOSING, CLOSED):
            return
        if self.state is JOINED and not self._is_being_released and not self._behind:
            self._pass_on(data)
            return
        # What has come is held; more need not come before there is a web server for it.
        self._behind += data
        if self.state is NEW and not self._says_hello():
            return
        if not self._held_back:
            self._held_back = True
            self.actions.append(Order.PAUSE_CLIENT)
        if self.state is NEW:
            self._choose()
        elif self.state is WAITING and self.due_at == NEVER:
            self.due_at = self._traffic.now + self._traffic.limits.no_server_wait_s

    def _says_hello(self) -> bool:
        """Whether a whole record has come: before that no web server is troubled."""
        try:
            return bool(RecordSplitter().feed(self._behind))
        except BadRecord:
            self._traffic.count(Fault.BAD_REQUEST)
            self._close(Order.ABORT_CLIENT)
            return False

    def client_lost(self) -> None:
        """The client's connection is gone, or its side has ended: TLS has no half of a connection."""
        if self.state is CLOSED:
            return
        if self.state in (CONNECTING, JOINED):
            self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()
        self._leave_lists()
        self.state = CLOSED
        self.due_at = NEVER
        self._traffic.connections.pop(self, None)
        self._guest.leave()

    def client_full(self, unsent: int) -> None:
        """The client does not take what is written."""
        self._client_full = True
        self._stalled_bytes = unsent
        if self.state is JOINED:
            self.actions.append(Order.PAUSE_SERVER)
            self.due_at = self._traffic.now + self._traffic.limits.body_timeout_s

    def client_ready(self) -> None:
        """The client takes bytes again."""
        self._client_full = False
        if self.state is JOINED:
            self.actions.append(Order.RESUME_SERVER)
            self._rest()
