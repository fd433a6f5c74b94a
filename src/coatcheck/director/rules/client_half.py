"""A connection's half towards the client: its requests, the director's own answers, and the end of it all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coatcheck.director.rules.actions import Order, ToClient, TunnelSide
from coatcheck.director.rules.connection_state import BODY_HELD, PIPELINED
from coatcheck.director.rules.deadlines import DeadlineKind
from coatcheck.director.rules.delivery import Delivery
from coatcheck.director.rules.durable_socket import DurableSocket
from coatcheck.director.rules.durable_upgrade import OFFER_LINE
from coatcheck.director.rules.faults import Fault
from coatcheck.director.rules.forwarding import is_reserved, request_tail
from coatcheck.director.rules.http_framing import BadHead
from coatcheck.director.rules.request_head import RequestFields, RequestHead
from coatcheck.director.rules.response_head import own_response
from coatcheck.director.rules.server_half import ServerHalf
from coatcheck.director.rules.transitions import State
from coatcheck.director.rules.tunnel import Tunnel

_CLOSED, _CLOSING, _HEAD, _IDLE, _LINGERING = (
    State.CLOSED, State.CLOSING, State.HEAD, State.IDLE, State.LINGERING,
)  # fmt: skip
_AWAITS_IDLE = DeadlineKind.IDLE
_NEVER: Final = float("inf")
_ANY_NUMBER: Final = 1 << 62
"""Of bytes that wait for a client: more than there can be."""


class ClientHalf(ServerHalf):
    """Takes requests in, sees to it that each is answered once, and ends the connection in order."""

    __slots__ = ()

    # Coming and going

    def _enter(self) -> None:
        traffic = self._traffic
        self._await(DeadlineKind.HEADER, self._limits.header_timeout_s)
        self.state = _IDLE
        guest = self._guest
        if guest is None:
            guest = self._guest = traffic.enter(self._address.peer)
            fault = traffic.too_many(guest)
            if fault is not None and traffic.is_flooded(guest):
                traffic.count(fault)
                self.state = _CLOSING
                self.actions.append(Order.ABORT_CLIENT)
            elif fault is not None:
                self._refuse(429 if fault is Fault.TOO_MANY_FROM_ADDRESS else 503, fault)
        traffic.connections[self] = None

    def _client_gone(self) -> None:
        traffic = self._traffic
        del traffic.connections[self]
        if self.is_under_way:
            traffic.count(Fault.CLIENT_GONE)
            self._abandon()
        self._leave_room()
        self.state = _CLOSED
        self.due_at = _NEVER

    def _leave_room(self) -> None:
        self._end_exchange()
        if self._guest is not None:
            self._guest.leave()

    def _end_exchange(self) -> None:
        if self._guest_behind is not None:
            self._guest_behind.leave()
            self._guest_behind = None

    def join(self) -> Tunnel | DurableSocket:
        """What both connections belong to from now on; to be called once, for :attr:`Order.JOIN`."""
        assert self.state is State.TUNNEL and self.server is not None
        del self._traffic.connections[self]
        guests = [guest for guest in (self._guest, self._guest_behind) if guest is not None]
        if self._upgrade is not None:
            return self._join_durably(DurableSocket(self._traffic, self.server, guests, self._upgrade))
        tunnel = Tunnel(self._traffic, self.server, guests, can_half_close=self._can_half_close)
        tunnel.opened(self._stream.take_all(), client_full=self._client_full, server_full=self._server_full)
        if self._half_closed:
            # The socket says so once, and that was before there was a tunnel.
            tunnel.ended(TunnelSide.CLIENT)
        # The tunnel counts as the request in flight now.
        self.server = None
        return tunnel

    def _join_durably(self, durable: DurableSocket) -> DurableSocket:
        durable.opened(self._stream.take_all(), client_full=self._client_full)
        if self._half_closed:
            durable.client_eof()
        self.server = None
        return durable

    def _eof_before_a_request(self) -> None:
        self._half_closed = True
        self._close_client()

    def _eof_in_buffered_bytes(self) -> None:
        self._half_closed = True
        self.actions.append(Order.GO_ON)

    def _eof_behind_a_request(self) -> None:
        self._half_closed = True
        if not self._stream.body_done:
            # It can never become whole.
            self._traffic.count(Fault.CLIENT_GONE)
            self._abandon()
            self._end_exchange()
            self._close_client()

    # Requests

    def _take_head(self, data: bytes) -> None:
        if self._client_full:
            # It does not take the answers that it has: one more is not begun before it does.
            self.state = _HEAD
            self._take_more_of_head(data)
            return
        try:
            head = self._stream.head(data)
        except BadHead as fault:
            self._refuse(fault.status, Fault.BAD_REQUEST)
            return
        if head is not None:
            self._begin(head)
            return
        self.state = _HEAD
        self._await(DeadlineKind.HEADER, self._limits.header_timeout_s)

    def _take_more_of_head(self, data: bytes) -> None:
        self._stream.hold(data)
        self._next()

    def _next(self) -> None:
        """Go on with what has been buffered, unless the client has to take the answers before first."""
        if self._client_full:
            self._pause_client(PIPELINED)
            return
        self._resume_client(PIPELINED)
        try:
            head = self._stream.next_head()
        except BadHead as fault:
            self._refuse(fault.status, Fault.BAD_REQUEST)
            return
        if head is not None:
            self._begin(head)
        elif self._half_closed:
            # It can never become whole.
            self._close_client()
        elif self._due is _AWAITS_IDLE:
            self._await(DeadlineKind.HEADER, self._limits.header_timeout_s)

    def _begin(self, head: RequestHead) -> None:
        traffic, fields, stream = self._traffic, head.fields, self._stream
        traffic.requests += 1
        self._began_at = traffic.clock()
        if fields is not self._known_fields:
            self._known_fields = fields
            self._tail = request_tail(fields, self._address)
            if fields.websocket:
                self._tail += OFFER_LINE
        method, cookies = head.method, head.cookies
        if cookies != self._cookies:
            self._cookies = cookies
            self._tag = traffic.read_tag(cookies)
        if cookies and not fields.cookies:
            self._request = b"".join((method, b" ", head.target, self._tail, b"Cookie: ", cookies, b"\r\n\r\n"))
        else:
            self._request = b"".join((method, b" ", head.target, self._tail, b"\r\n"))
        self._head = head
        self._delivery = Delivery(head.method, self._tag, cookies)
        if self.sends_before:
            self._delivery.sent_before(self.sends_before, begun=self.begun_before, keyed=_has_idempotency_key(fields))
        self._close = not fields.keep_alive
        self._kept = []
        self._kept_bytes = 0
        self._fresh_only = self._continued = False
        self._pause = self._waiting_since = None
        if not stream.body_done:
            self._pace.begin_body()
        rest, stream.rest = stream.rest, b""
        if rest and not self._take_rest(rest):
            return
        if self._half_closed and not stream.body_done:
            # It can never become whole.
            self._fail(400, Fault.BAD_REQUEST)
            return
        fault = self._refusal(fields) if fields.websocket or self._address.is_trusted else None
        if fault is not None:
            self._fail(429 if fault is Fault.TOO_MANY_FROM_ADDRESS else 503, fault)
        elif is_reserved(head.target):
            self._answer(404)
        elif not self._delivery.may_be_written:
            self._fail(502, Fault.UPSTREAM_LOST)
        else:
            self._dispatch()

    def _refusal(self, fields: RequestFields) -> Fault | None:
        """Why a request of somebody behind a proxy, or a WebSocket, is one too many."""
        traffic = self._traffic
        client = self._address.client_behind(fields)
        if client is not None:
            self._guest_behind = traffic.admission.enter(client, is_connection=False)
            fault = traffic.too_many(self._guest_behind)
            if fault is not None:
                return fault
        return None if not fields.websocket or traffic.takes_websockets else Fault.TOO_MANY_WEBSOCKETS

    def _take_behind_head(self, data: bytes) -> None:
        self._take_rest(data)

    def _take_rest(self, data: bytes) -> bool:
        """Bytes behind a request's head: of its body, or of the next request; ``False``: the framing is malformed."""
        stream = self._stream
        if not stream.body_done:
            self._pace.body_came(len(data))
            try:
                piece = stream.body(data)
            except BadHead:
                self._fail(400, Fault.BAD_REQUEST)
                return False
            self._await_bytes()
            if piece:
                self._feed(piece)
            if not stream.body_done:
                return True
            self._release_body()
            data, stream.rest = stream.rest, b""
        if data:
            # The next request, before this one was answered: it waits, and what is behind it is not even read.
            stream.hold(data)
            self._pause_client(PIPELINED)
        return True

    # Responses

    def _response_done(self) -> None:
        if self._guest_behind is not None:
            self._end_exchange()
        stream, traffic = self._stream, self._traffic
        traffic.durations.add(self._status, traffic.clock() - self._began_at)
        self._kept = None
        close = self._close or traffic.stopping or self.is_last
        if not stream.body_done or (close and stream.buffer):
            self._linger()
        elif close or (self._half_closed and not stream.buffer):
            self._close_client()
        else:
            self._due = _AWAITS_IDLE
            self.due_at = traffic.now + self._limits.keep_alive_timeout_s
            if stream.buffer:
                self.state = _HEAD
                # Not at once: a thousand pipelined requests would be a thousand calls deep.
                self.actions.append(Order.GO_ON)
            else:
                self.state = _IDLE
                self.sends_before = 0

    def _fail(self, status: int, fault: Fault) -> None:
        self._traffic.count(fault)
        if not self._delivery.replied:
            self._answer(status)
            return
        self._end_exchange()
        self._abandon()
        if self._close:
            # The end of the connection may be all that tells the end of this body, so let it look like a break.
            self._await_end(_CLOSING, Order.RESET_CLIENT)
        else:
            self._close_client()

    def _answer(self, status: int) -> None:
        """Answer the current request ourselves."""
        self._abandon()
        close, traffic = self._ends_with(0), self._traffic
        self._delivery.replied = True
        self._status = status
        self.actions.append(ToClient(own_response(status, close, traffic.hsts, self._limits.error_pages, self._head)))
        self._response_done()

    def _refuse(self, status: int, fault: Fault) -> None:
        """Answer what is no request, and read no more: where the next one would begin, nobody knows."""
        traffic = self._traffic
        traffic.count(fault)
        self.actions.append(ToClient(own_response(status, True, traffic.hsts, self._limits.error_pages)))
        self._linger()

    def _close_client(self) -> None:
        self._await_end(_CLOSING, Order.CLOSE_CLIENT)

    def _close_idle(self) -> None:
        self._close_client()
        if not self._traffic.stopping:
            # Somebody else needs the room: what this client does not take at once it does not get.
            self._stalled_bytes, self._taken_at = 0, -_NEVER

    def _linger(self) -> None:
        """Say no more, and swallow what the client says for a while: a reset could destroy the answer (RFC 9112, 9.6).

        Where our side cannot end alone (TLS), the end waits until the answer has left and the time is over.
        """
        if self._half_closed:
            self._close_client()
            return
        if self._pauses:
            self._resume_client(self._pauses)
        self._await_end(_LINGERING, Order.END_CLIENT if self._can_half_close else None)

    def _await_end(self, state: State, order: Order | None) -> None:
        self._stream.take_all()
        self.state = state
        self._stalled_bytes, self._taken_at = _ANY_NUMBER, self._traffic.now
        self._await(DeadlineKind.LINGER, self._limits.linger_s)
        if order is not None:
            self.actions.append(order)

    # Back-pressure

    def _note_client_full(self, unsent: int) -> None:
        self._client_full = True
        self._stalled_bytes = unsent

    def _client_full_in_exchange(self, unsent: int) -> None:
        self._note_client_full(unsent)
        self._pause_server()

    def _note_client_ready(self) -> None:
        self._client_full = False
        self._pace.takes_again()

    def _client_ready_for_next(self) -> None:
        self._note_client_ready()
        self._next()

    def _client_ready_in_exchange(self) -> None:
        self._note_client_ready()
        self._resume_server()

    def _note_server_full(self) -> None:
        self._server_full = True
        self._hold_body()

    def _note_server_ready(self) -> None:
        self._server_full = False
        self._release_body()

    # Time

    def _overdue(self, unsent: int) -> None:
        """The deadline has passed: whose turn was it?"""
        if self._client_full:
            self._check_stalled_client(unsent)
        else:
            _WHEN_OVERDUE[self.state](self)

    def _check_stalled_client(self, unsent: int) -> None:
        """A client that takes a response slowly is fine; one that takes nothing is not."""
        if unsent >= self._stalled_bytes:
            self._drop_client(Fault.CLIENT_TIMEOUT)
            return
        self._stalled_bytes = unsent
        self._await(self._due, self._limits.body_timeout_s)

    def _drop_client(self, fault: Fault) -> None:
        self._traffic.count(fault)
        if self.is_under_way:
            self._abandon()
        self._end_exchange()
        # Without a break, what has left of a body that ends with the connection would look whole.
        self._await_end(_CLOSING, Order.RESET_CLIENT)

    def _head_overdue(self) -> None:
        self._refuse(408, Fault.CLIENT_TIMEOUT)

    def _body_or_answer_overdue(self) -> None:
        if not self._stream.body_done and not self._pauses & BODY_HELD:
            self._fail(408, Fault.CLIENT_TIMEOUT)
        else:
            self._answer_overdue()

    def _end_overdue(self, unsent: int) -> None:
        """The last response may still be on its way to a slow client: it goes on for as long as it is taken."""
        now, limits = self._traffic.now, self._limits
        if unsent < self._stalled_bytes:
            self._stalled_bytes, self._taken_at = unsent, now
        if unsent and now - self._taken_at < limits.body_timeout_s:
            self._await(DeadlineKind.LINGER, limits.linger_s)
            return
        if self.state is _LINGERING and not (unsent or self._can_half_close):
            self._close_client()
            return
        self.actions.append(Order.RESET_CLIENT if unsent else Order.ABORT_CLIENT)
        self.state = _CLOSING
        self.due_at = _NEVER

    def _judge_pace(self, unsent: int) -> None:
        """A client that gave or took too little in all of a window has to go.

        What waits because a web server takes no more, or has not said 100 Continue, is not the client's fault.
        """
        limits = self._limits
        comes = self.is_under_way and not self._stream.body_done and not self._pauses & BODY_HELD
        waits = self._client_full or (self.is_ending and unsent > 0)
        given, taken = self._pace.round_over(comes=comes, unsent=unsent if waits else None)
        if taken is not None and taken < limits.min_read_rate * limits.rate_window_s:
            self._drop_client(Fault.CLIENT_TOO_SLOW)
        elif (
            comes
            and not self._awaits_continue
            and given is not None
            and given < limits.min_body_rate * limits.rate_window_s
        ):
            self._fail(408, Fault.CLIENT_TOO_SLOW)


def _has_idempotency_key(fields: RequestFields) -> bool:
    """Whether the client says that the request may come twice (draft-ietf-httpapi-idempotency-key-header)."""
    return b"\nidempotency-key:" in b"\n" + fields.lines.lower()


_WHEN_OVERDUE: Final[dict[State, Callable[..., None]]] = {
    State.IDLE: ClientHalf._close_client,
    State.HEAD: ClientHalf._head_overdue,
    State.PARKED: ClientHalf._waited_too_long,
    State.CONNECTING: ClientHalf._body_or_answer_overdue,
    State.SENT: ClientHalf._body_or_answer_overdue,
    State.HELD: ClientHalf._held_long_enough,
    State.REPLYING: ClientHalf._body_or_answer_overdue,
}
