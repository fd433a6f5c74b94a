"""A connection's half towards the web servers: the request to one of them, to another if need be, and the answer."""

from __future__ import annotations

from enum import Enum
from typing import Final, cast

from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.connection_state import ConnectionState
from coatcheck.director.rules.deadlines import DeadlineKind
from coatcheck.director.rules.delivery import Failure, Step, WaitReason
from coatcheck.director.rules.durable_upgrade import Upgrade, for_client, is_deflated, ticket_of
from coatcheck.director.rules.faults import FAULT_OF_FAILURE, Fault
from coatcheck.director.rules.http_framing import CHUNKED, UNTIL_CLOSE, BadHead, HeadFault
from coatcheck.director.rules.response_head import ResponseHead
from coatcheck.director.rules.response_stream import body_length, rebuilt_head
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.transitions import State

_CONNECTING, _HELD, _PARKED, _REPLYING, _SENT = (
    State.CONNECTING, State.HELD, State.PARKED, State.REPLYING, State.SENT,
)  # fmt: skip
_RELEASE, _RELEASE_AND_CLOSE = ReleaseServer(keep=True), ReleaseServer(keep=False)
_FOR_BUSY: Final = WaitReason.BUSY
_FOR_ANY: Final = WaitReason.NO_SERVER
_ANSWER, _RESPONSE = DeadlineKind.ANSWER, DeadlineKind.RESPONSE


class Ending(Enum):
    """How a web server's connection ended."""

    CLEAN = "it ended its side, or closed"
    RESET = "it was reset"
    BROKEN = "it broke in another way"


class ServerHalf(ConnectionState):
    """Delivers the current request, and takes the response in."""

    __slots__ = ()

    # To a web server

    def _dispatch(self) -> None:
        """Choose a web server and send the request there, or wait for one."""
        traffic, delivery, since = self._traffic, self._delivery, self._waiting_since
        waited_s = 0.0 if since is None else traffic.now - since
        chosen = delivery.next_server(traffic.balancer, waited_s, traffic.delivery_policy)
        # Not isinstance: an enumeration answers that in as long as a call takes.
        if chosen is _FOR_BUSY or chosen is _FOR_ANY:
            self._park(chosen)
            return
        self._pause = None
        chosen.in_flight += 1
        chosen.requests += 1
        self.server = chosen
        self.state = _CONNECTING
        self._due = _ANSWER
        self.due_at = traffic.now + self._limits.first_byte_timeout_s
        self.actions.append(Reach(chosen, not delivery.idempotent, self._fresh_only))

    def _connected(self, reused: bool, full: bool) -> None:
        """A connection was had: write the request, and what is there of its body."""
        delivery, kept = self._delivery, self._kept
        self.state = _SENT
        self._reused = reused
        self._server_full = full
        delivery.write()
        self.actions.append(ToServer(self._request + b"".join(kept) if kept else self._request))
        self._sent_at = self._traffic.now
        if not delivery.idempotent or self._kept_bytes > self._limits.kept_body_bytes:
            self._forget_body()
        if self._client_full:
            self._pause_server()
        if not self._stream.body_done:
            self._await_bytes()
            if not full:
                self._release_body()

    def _forget_body(self) -> None:
        self._kept = None
        self._delivery.whole = False

    def _feed(self, piece: bytes) -> None:
        """Send on a piece of the body, framed as on the wire; before there is a connection, keep it."""
        is_sent = self._delivery.written
        if is_sent:
            self.actions.append(ToServer(piece))
        kept = self._kept
        if kept is None:
            return
        kept.append(piece)
        self._kept_bytes += len(piece)
        if self._kept_bytes > self._limits.kept_body_bytes:
            if is_sent:
                self._forget_body()
            else:
                self._hold_body()

    # Waiting for a web server

    def _park(self, pause: WaitReason) -> None:
        traffic, limits = self._traffic, self._limits
        if self._waiting_since is None:
            self._waiting_since = traffic.now
        if pause is WaitReason.NO_SERVER and self._pause is not pause:
            self._no_server_since = traffic.now
        self._pause = pause
        self.state = _PARKED
        if not traffic.park(self):
            self._waited_too_long()
            return
        self._due, self.due_at = DeadlineKind.QUEUE, self._waiting_since + limits.first_byte_timeout_s
        if pause is WaitReason.NO_SERVER:
            no_server_at = self._no_server_since + limits.no_server_wait_s
            if no_server_at < self.due_at:
                self._due, self.due_at = DeadlineKind.NO_SERVER, no_server_at

    def _woken(self, admitted: ServerState | None) -> None:
        if admitted is not None:
            self._delivery.admitted(admitted)
        self._dispatch()

    def _waited_too_long(self) -> None:
        """It was never sent, or its only try ended without an answer; the client may come again."""
        self._fail(503, Fault.UPSTREAM_BUSY if self._pause is WaitReason.BUSY else Fault.NO_SERVER)

    def _parked_busy_tick(self) -> None:
        """Has it waited for its busy web server long enough?"""
        patience_s, since = self._traffic.delivery_policy.resend_after_s, self._waiting_since
        if self._pause is WaitReason.BUSY and since is not None and 0 < patience_s <= self._traffic.now - since:
            self._traffic.unpark(self)
            self._dispatch()

    # When it goes wrong

    def _not_connected(self, failure: Failure) -> None:
        """Nothing was sent, so another server may get the request, whatever it is."""
        self._failed(failure)

    def _server_ended(self, ending: Ending) -> None:
        """The connection ended: before the response did, or as its end."""
        server = cast(ServerState, self.server)
        if self.state is _REPLYING and self._response.ends_with_connection and ending is Ending.CLEAN:
            self._finish()
            return
        if ending is Ending.RESET and not self._reused and not self._delivery.replied:
            self._traffic.eject(server, "it reset a new connection")
        else:
            self._traffic.check_now(server)
        self._leave_and_fail(Failure.LOST)

    def _server_died(self) -> None:
        """Its process has ended, whatever its connection says: a child of the dead one may still hold it open."""
        self._leave_and_fail(Failure.LOST)

    def _sent_busy_tick(self) -> None:
        """Some web server is busy: has this request been with it for long enough?"""
        server, traffic = cast(ServerState, self.server), self._traffic
        silent_s = traffic.now - self._sent_at
        if self._stream.body_done and self._delivery.is_impatient(silent_s, server.health, traffic.delivery_policy):
            self._leave_and_fail(Failure.SILENT)

    def _answer_overdue(self) -> None:
        """No answer, or no more of it, within the longest time allowed."""
        self._leave_and_fail(Failure.LATE)

    def _leave_and_fail(self, failure: Failure) -> None:
        self.actions.append(Order.LEAVE_SERVER)
        self._failed(failure)

    def _failed(self, failure: Failure) -> None:
        server, delivery, traffic = cast(ServerState, self.server), self._delivery, self._traffic
        if failure is not Failure.STALLED:
            server.failures += 1
        self._response.forget()
        was_written = delivery.written
        step = delivery.failed(server, failure, traffic.delivery_policy)
        self._let_go_of_server()
        # A connection of the pool may end at any moment; a new one that fails as well says more.
        self._fresh_only = True
        if step is Step.DELIVER:
            traffic.retries += was_written
            self._dispatch()
        else:
            self._fail(504 if step is Step.GATEWAY_TIMEOUT else 502, FAULT_OF_FAILURE[failure])

    def _let_go_of_server(self) -> None:
        """The server is done with this request."""
        if self.server is not None:
            self.server.in_flight -= 1
            self.server = None
        if self._held:
            self._held.clear()
        self._server_full = self._server_paused = False

    def _abandon(self) -> None:
        """The client is gone, or was answered by us."""
        if self.state is _PARKED:
            self._traffic.unpark(self)
        if self.server is not None:
            self.actions.append(Order.LEAVE_SERVER)
        self._let_go_of_server()

    # Back-pressure

    def _pause_server(self) -> None:
        if not self._server_paused:
            self._server_paused = True
            self.actions.append(Order.PAUSE_SERVER)

    def _resume_server(self) -> None:
        if self._server_paused:
            self._server_paused = False
            self.actions.append(Order.RESUME_SERVER)

    # The response

    def _take_response_head(self, data: bytes) -> None:
        self._traffic.heard(self.server)
        response = self._response
        try:
            while True:
                head = response.head(data)
                if head is None:
                    return
                if head.status >= 200:
                    break
                data = response.data[response.end :]
                if head.status == 101:
                    self._open_tunnel(head, data)
                    return
                self._informational(head)
                if not data:
                    return
            self._begin_response(head)
        except BadHead:
            self._leave_and_fail(Failure.NONSENSE)

    def _begin_response(self, head: ResponseHead) -> None:
        fields, response, hsts = self._head.fields, self._response, self._traffic.hsts
        self._status = head.status
        length = body_length(head, self._head.method)
        close = self._ends_with(length)
        response.keep_alive = head.keep_alive and length != UNTIL_CLOSE
        plain = head.as_sent and not (close or hsts or fields.http10)
        data, end = response.data, response.end
        # Nothing of an answer is kept for longer than it takes to pass it on.
        response.data = b""
        if plain and length == len(data) - end:
            # The common case: all of it came at once, and it leaves as it came.
            self._delivery.replied = True
            self.actions.append(ToClient(data))
            self._finish()
            return
        start = data[:end] if plain else rebuilt_head(head, length, http10=fields.http10, close=close, hsts=hsts)
        body = data[end:]
        response.begin_body(length, dechunk=fields.http10)
        if len(body) < length <= self._limits.held_response_bytes:
            self.state = _HELD
            self._held.append(start)
            self._await(DeadlineKind.HELD, self._limits.hold_response_s)
            if body:
                self._held.append(response.body(body))
            return
        self._delivery.replied = True
        self.actions.append(ToClient(start))
        self.state = _REPLYING
        self._pass_on(body)

    def _ends_with(self, length: int) -> bool:
        """Whether the client's connection ends with the response that begins now, of that length."""
        if (
            not self._stream.body_done
            or length == UNTIL_CLOSE
            or (self._half_closed and self._is_last_request)
            or self._traffic.stopping
            or self.is_last
            or (length == CHUNKED and self._head.fields.http10)
        ):
            self._close = True
        return self._close

    @property
    def _is_last_request(self) -> bool:
        """Whether the client has ended its side, and nothing of it is left to be served."""
        return self._half_closed and not self._stream.buffer

    def _take_response_body(self, data: bytes) -> None:
        """More of a response that has begun to leave."""
        self._traffic.heard(self.server)
        try:
            self._pass_on(data)
        except BadHead:
            self._leave_and_fail(Failure.NONSENSE)

    def _pass_on(self, data: bytes) -> None:
        response = self._response
        self._due = _RESPONSE
        self.due_at = self._traffic.now + self._limits.body_timeout_s
        piece = response.body(data)
        if piece:
            self.actions.append(ToClient(piece))
        if response.done:
            self._finish()

    def _hold_response_body(self, data: bytes) -> None:
        """More of a response that is held; the time that it may be held goes on."""
        self._traffic.heard(self.server)
        self._held.append(self._response.body(data))
        if self._response.done:
            self._let_held_leave()
            self._finish()

    def _let_held_leave(self) -> None:
        """From here on the request cannot be sent again."""
        self._delivery.replied = True
        self.actions.append(ToClient(b"".join(self._held)))
        self._held.clear()

    def _held_long_enough(self) -> None:
        self._let_held_leave()
        self.state = _REPLYING
        self._await(_RESPONSE, self._limits.body_timeout_s)

    def _informational(self, head: ResponseHead) -> None:
        """A 1xx response: for HTTP/1.1 clients only, and 100 only once and if asked for (RFC 9110, 15.2)."""
        if self._head.fields.http10:
            return
        if head.status == 100:
            if not self._awaits_continue:
                return
            self._continued = True
        self.actions.append(ToClient(self._informational_head(head)))

    @property
    def _awaits_continue(self) -> bool:
        """Whether the client keeps its body until it is told to go on."""
        return self._head.fields.expects_continue and not self._continued

    def _informational_head(self, head: ResponseHead) -> bytes:
        return rebuilt_head(head, 0, http10=self._head.fields.http10, close=False, hsts=b"")

    def _open_tunnel(self, head: ResponseHead, first: bytes) -> None:
        """The web server agreed to speak WebSocket: bytes pass both ways unread, unless its app has opted in."""
        if not (self._head.fields.websocket and head.websocket):
            raise BadHead(HeadFault.STATUS_LINE, 502)
        if not self._traffic.takes_websockets:
            # There was room when it was asked for.
            self._fail(503, Fault.TOO_MANY_WEBSOCKETS)
            return
        self._delivery.replied = True
        ticket = ticket_of(head)
        if ticket is not None:
            self._upgrade = Upgrade(self._request, self._tag, self._cookies, ticket, is_deflated(head), first)
            head, first = for_client(head), b""
        self.actions += [ToClient(self._informational_head(head) + first), Order.JOIN]
        self.state = State.TUNNEL

    def _finish(self) -> None:
        """The response has ended, and the web server has nothing more to do with this client."""
        if self._server_paused:
            self._resume_server()
        keep = self._response.keep_alive and self._stream.body_done
        self.actions.append(_RELEASE if keep else _RELEASE_AND_CLOSE)
        self._let_go_of_server()
        self._response_done()
