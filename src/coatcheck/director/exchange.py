"""One request on its way: to a web server, to another one if need be, and its answer back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from coatcheck.director.relay import Fault, Relay
from coatcheck.director.rules.delivery import Delivery, Failure, Step, WaitReason
from coatcheck.director.rules.http_framing import CHUNKED, UNTIL_CLOSE
from coatcheck.director.rules.request_head import RequestHead
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.tunnel import Tunnel

if TYPE_CHECKING:
    from coatcheck.director.downstream import Downstream
    from coatcheck.director.upstream import Upstream, UpstreamPool

_FAULTS: Final = {
    Failure.REFUSED: Fault.UPSTREAM_LOST,
    Failure.STALLED: Fault.UPSTREAM_BUSY,
    Failure.LOST: Fault.UPSTREAM_LOST,
    Failure.SILENT: Fault.UPSTREAM_SILENT,
    Failure.LATE: Fault.UPSTREAM_TIMEOUT,
    Failure.NONSENSE: Fault.BAD_RESPONSE,
}


class Exchange:
    """A request and the attempts to have it answered."""

    __slots__ = (
        "_connecting", "_continued", "_fresh_only", "_kept", "_kept_bytes", "_no_server_since", "_pause", "_request",
        "_sent_at", "_waiting_since", "client", "close", "delivery", "fields", "head", "pool", "relay", "upstream",
    )  # fmt: skip

    def __init__(self, relay: Relay, client: Downstream, head: RequestHead, request: bytes, tag: bytes | None) -> None:
        self.relay = relay
        self.client = client
        self.head = head
        self.fields = head.fields
        self.delivery = Delivery(head.method, tag)
        self.pool: UpstreamPool | None = None
        self.upstream: Upstream | None = None
        self.close = not head.fields.keep_alive
        """Whether the client's connection ends with this response."""
        self._request = request
        # Pieces of the body as they go over the wire; None once they are no longer held.
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._sent_at = 0.0
        self._fresh_only = False
        self._continued = False
        self._connecting: asyncio.Task[None] | None = None
        self._pause: WaitReason | None = None
        self._waiting_since: float | None = None
        self._no_server_since = 0.0

    # Towards the web server

    def dispatch(self) -> None:
        """Choose a web server and send the request there, or wait for one."""
        relay, waiting_since = self.relay, self._waiting_since
        waited_s = 0.0 if waiting_since is None else relay.now - waiting_since
        chosen = self.delivery.next_server(relay.balancer, waited_s, relay.delivery_policy)
        if isinstance(chosen, WaitReason):
            self._wait(chosen)
            return
        self._pause = None
        chosen.in_flight += 1
        chosen.requests += 1
        self.client.deadline = relay.now + relay.options.first_byte_s
        pool = self.pool = relay.pools[chosen.index]
        upstream = None if self._fresh_only else pool.take(certain=not self.delivery.idempotent)
        if upstream is not None:
            self._attach(upstream)
        else:
            self._connecting = relay.connect(pool, self)

    def is_connecting(self, task: asyncio.Task[None] | None) -> bool:
        """Whether this request still waits for the connection that ``task`` opens."""
        return task is not None and self._connecting is task

    def connected(self, upstream: Upstream) -> None:
        """A connection was opened for this request."""
        self._connecting = None
        if upstream.is_gone:
            self.not_connected(Failure.REFUSED)
        else:
            self._attach(upstream)

    def not_connected(self, failure: Failure) -> None:
        """No connection: nothing was sent, so another server may get the request, whatever it is."""
        self._connecting = None
        self._failed(failure)

    def _attach(self, upstream: Upstream) -> None:
        self.upstream = upstream
        upstream.exchange = self
        delivery, kept = self.delivery, self._kept
        delivery.write()
        upstream.transport.write(self._request + b"".join(kept) if kept else self._request)
        self._sent_at = self.relay.now
        if not delivery.idempotent or self._kept_bytes > self.relay.options.kept_body_bytes:
            self._forget_body()
        client = self.client
        if client.write_paused:
            upstream.pause_reading()
        if not client.body_done:
            client.deadline = self.relay.now + client.answer_timeout_s()
            if not upstream.write_paused:
                client.release_body()

    def _forget_body(self) -> None:
        self._kept = None
        self.delivery.whole = False

    def feed(self, piece: bytes) -> None:
        """Send on a piece of the body, framed as on the wire; before there is a connection, keep it."""
        upstream, kept = self.upstream, self._kept
        if upstream is not None:
            upstream.transport.write(piece)
        if kept is None:
            return
        kept.append(piece)
        self._kept_bytes += len(piece)
        if self._kept_bytes > self.relay.options.kept_body_bytes:
            if upstream is not None:
                self._forget_body()
            else:
                self.client.hold_body()

    # Waiting for a web server

    def _wait(self, pause: WaitReason) -> None:
        relay, options = self.relay, self.relay.options
        if self._waiting_since is None:
            self._waiting_since = relay.now
        if pause is WaitReason.NO_SERVER and self._pause is not pause:
            self._no_server_since = relay.now
        self._pause = pause
        if not relay.park(self):
            self.waited_too_long()
            return
        self.client.deadline = self._waiting_since + options.first_byte_s
        if pause is WaitReason.NO_SERVER:
            self.client.deadline = min(self.client.deadline, self._no_server_since + options.no_server_wait_s)

    @property
    def is_parked(self) -> bool:
        """Whether it waits in the director for a web server."""
        return self._pause is not None

    def wake(self, admitted: ServerState | None) -> None:
        """The health of a web server changed while this request waited."""
        if admitted is not None:
            self.delivery.admitted(admitted)
        self.dispatch()

    def waited_too_long(self) -> None:
        """It was never sent, or its only try ended without an answer; the client may come again."""
        self.client.fail(503, Fault.UPSTREAM_BUSY if self._pause is WaitReason.BUSY else Fault.NO_SERVER)

    # When it goes wrong

    def lost(self, upstream: Upstream, *, reset: bool) -> None:
        """The connection ended before the response did."""
        relay, pool = self.relay, self.pool
        assert pool is not None
        if reset and not upstream.is_reused and not self.replied:
            relay.eject(pool.state, "it reset a new connection")
        else:
            relay.nudge(pool.state)
        self._failed(Failure.LOST)

    def bad_response(self, upstream: Upstream) -> None:
        """What the web server sent is no HTTP."""
        upstream.drop()
        self._failed(Failure.NONSENSE)

    def reconsider(self, now: float) -> None:
        """Some web server is busy: has this request waited for it long enough?"""
        policy = self.relay.delivery_policy
        if self._pause is WaitReason.BUSY:
            if self._waiting_since is not None and 0 < policy.resend_after_s <= now - self._waiting_since:
                self.relay.unpark(self)
                self.dispatch()
        elif (
            self.pool is not None
            and self._connecting is None
            and self.client.body_done
            and self.delivery.is_impatient(now - self._sent_at, self.pool.state.health, policy)
        ):
            self._leave()
            self._failed(Failure.SILENT)

    def timed_out(self) -> None:
        """No answer, or no more of it, within the longest time allowed."""
        self._leave()
        self._failed(Failure.LATE)

    def server_died(self) -> None:
        """Its web server is dead, whatever its connection says: a child of the dead one may still hold it open."""
        if self._connecting is None:
            self._leave()
            self._failed(Failure.LOST)

    def _failed(self, failure: Failure) -> None:
        pool, delivery = self.pool, self.delivery
        assert pool is not None
        if failure is not Failure.STALLED:
            pool.state.failures += 1
        was_written = delivery.written
        step = delivery.failed(pool.state, failure, self.relay.delivery_policy)
        self.release_server()
        # A connection of the pool may end at any moment; a new one that fails as well says more.
        self._fresh_only = True
        if step is Step.DELIVER:
            self.relay.retries += was_written
            self.dispatch()
        else:
            self.client.fail(504 if step is Step.GATEWAY_TIMEOUT else 502, _FAULTS[failure])

    def _leave(self) -> None:
        if self.upstream is not None:
            self.upstream.drop()
        # A connection on its way here may still be of use to another request.
        self._connecting = None

    def release_server(self) -> None:
        """The server is done with this request."""
        if self.pool is not None:
            self.pool.state.in_flight -= 1
        self.pool = None
        self.upstream = None

    def abandon(self) -> None:
        """The client is gone, or was answered by us."""
        if self._pause is not None:
            self._pause = None
            self.relay.unpark(self)
        self._leave()
        self.release_server()

    # Towards the client

    @property
    def replied(self) -> bool:
        """Whether a byte of the final response has left for the client."""
        return self.delivery.replied

    @replied.setter
    def replied(self, value: bool) -> None:
        self.delivery.replied = value

    def begin_response(self, length: int) -> bool:
        """The final response begins; answers whether the client's connection ends with it."""
        client = self.client
        if (
            not client.body_done
            or length == UNTIL_CLOSE
            or client.is_last_request
            or self.relay.stopping
            or (self.fields.http10 and length == CHUNKED)
        ):
            self.close = True
        return self.close

    @property
    def awaits_continue(self) -> bool:
        """Whether the client keeps its body until it is told to go on."""
        return self.fields.expects_continue and not self._continued

    def informational(self, status: int, response: bytes) -> None:
        """A 1xx response: for HTTP/1.1 clients only, and 100 only once and if asked for (RFC 9110, 15.2)."""
        if self.fields.http10:
            return
        if status == 100:
            if self._continued or not self.fields.expects_continue:
                return
            self._continued = True
        self.client.transport.write(response)

    def open_tunnel(self, upstream: Upstream, response: bytes, first: bytes) -> None:
        """The web server agreed to speak WebSocket: from here on, bytes pass both ways unread."""
        assert self.pool is not None
        client = self.client
        if not self.relay.takes_websockets:
            # There was room when it was asked for.
            upstream.drop()
            self.release_server()
            client.fail(503, Fault.TOO_MANY_WEBSOCKETS)
            return
        self.replied = True
        client.transport.write(response + first)
        early, guests = client.become_tunnel()
        tunnel = Tunnel(self.relay, self.pool.state, client.transport, upstream.transport, guests)
        self.pool = self.upstream = None  # The tunnel counts as the request in flight now.
        tunnel.open(early, client_full=client.write_paused, server_full=upstream.write_paused)
