"""One request on its way: to a web server, to another one if need be, and its answer back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coatcheck.director.http_framing import CHUNKED, UNTIL_CLOSE
from coatcheck.director.relay import Fault, Relay
from coatcheck.director.request_head import RequestHead
from coatcheck.director.routing import IDEMPOTENT_METHODS, Attempt, ServerState, may_send_again
from coatcheck.director.tunnel import Tunnel

if TYPE_CHECKING:
    from coatcheck.director.downstream import Downstream
    from coatcheck.director.upstream import Upstream, UpstreamPool


class Exchange:
    """A request and the attempts to have it answered."""

    __slots__ = (
        "_connecting",
        "_continued",
        "_dispatches",
        "_fresh_only",
        "_kept",
        "_kept_bytes",
        "_parked",
        "_request",
        "_sent",
        "_sent_at",
        "_tag",
        "_tried",
        "_tries",
        "client",
        "close",
        "fields",
        "head",
        "idempotent",
        "pool",
        "relay",
        "replied",
        "upstream",
    )  # fmt: skip

    def __init__(self, relay: Relay, client: Downstream, head: RequestHead, request: bytes, tag: bytes | None) -> None:
        self.relay = relay
        self.client = client
        self.head = head
        self.fields = head.fields
        self.idempotent = head.method in IDEMPOTENT_METHODS
        self.pool: UpstreamPool | None = None
        self.upstream: Upstream | None = None
        self.replied = False
        """Whether a byte of the final response has left for the client."""
        self.close = not head.fields.keep_alive
        """Whether the client's connection ends with this response."""
        self._request = request
        self._tag = tag
        # Pieces of the body as they go over the wire; None once they are no longer held.
        self._kept: list[bytes] | None = []
        self._kept_bytes = 0
        self._tried: list[ServerState] | tuple[()] = ()
        self._tries = 0
        self._dispatches = 0
        self._sent = False
        self._sent_at = 0.0
        self._fresh_only = False
        self._continued = False
        self._connecting: asyncio.Task[None] | None = None
        self._parked = False

    # Towards the web server

    def dispatch(self) -> None:
        """Choose a web server and send the request there, or wait for one."""
        relay = self.relay
        state = relay.balancer.choose(self._tag, self._tried)
        if state is None:
            self._wait_for_server()
            return
        state.in_flight += 1
        state.requests += 1
        self._dispatches += 1
        self.client.deadline = relay.now + relay.options.first_byte_s
        pool = self.pool = relay.pools[state.index]
        upstream = None if self._fresh_only else pool.take(certain=not self.idempotent)
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
            self.connect_failed()
        else:
            self._attach(upstream)

    def connect_failed(self) -> None:
        """No connection: nothing was sent, so another server may get the request, whatever it is."""
        self._connecting = None
        self._failed_there(try_elsewhere=True)
        self._send_again_or_fail(502, Fault.UPSTREAM_LOST)

    def _attach(self, upstream: Upstream) -> None:
        self.upstream = upstream
        upstream.exchange = self
        kept = self._kept
        upstream.transport.write(self._request + b"".join(kept) if kept else self._request)
        self._sent = True
        self._sent_at = self.relay.now
        self._tries += 1
        if not self.idempotent or self._kept_bytes > self.relay.options.kept_body_bytes:
            self._kept = None
        client = self.client
        if client.write_paused:
            upstream.pause_reading()
        if not client.body_done:
            client.deadline = self.relay.now + client.answer_timeout_s()
            if not upstream.write_paused:
                client.release_body()

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
                self._kept = None
            else:
                self.client.hold_body()

    # When it goes wrong

    def _wait_for_server(self) -> None:
        relay = self.relay
        # With a fit server left, all that are fit were tried: waiting would bring nothing new.
        if relay.balancer.has_fit_server() and self._tried:
            self.client.fail(502, Fault.UPSTREAM_LOST)
        elif not relay.park(self):
            self.client.fail(503, Fault.NO_SERVER)
        else:
            self._parked = True
            self.client.deadline = relay.now + relay.options.no_server_wait_s

    def server_admitted(self, state: ServerState) -> None:
        """A web server came back, maybe as a new process, while this request waited."""
        self._parked = False
        self._tried = [tried for tried in self._tried if tried is not state]
        self.dispatch()

    def lost(self, upstream: Upstream, *, reset: bool) -> None:
        """The connection ended before the response did."""
        relay, pool = self.relay, self.pool
        assert pool is not None
        if reset and not upstream.is_reused and not self.replied:
            relay.eject(pool.state, "it reset a new connection")
        else:
            relay.nudge(pool.state)
        # A connection that had been waiting in the pool may just have ended its life; the server gets another
        # chance, with a new one.
        self._failed_there(try_elsewhere=not upstream.is_reused)
        self._fresh_only = True
        self._send_again_or_fail(502, Fault.UPSTREAM_LOST)

    def bad_response(self, upstream: Upstream) -> None:
        """What the web server sent is no HTTP. It was carried out all the same, so nobody else is asked."""
        upstream.drop()
        self._failed_there(try_elsewhere=True)
        self.client.fail(502, Fault.BAD_RESPONSE)

    def server_silent(self, now: float) -> None:
        """The health checks gave the server up: move on if that is allowed."""
        if self.replied or self._parked or (self._sent and not self._may_send_again()):
            self.reconsider(now)
        else:
            self._move_on(Fault.UPSTREAM_SILENT)

    def reconsider(self, now: float) -> None:
        """While the server is suspect: move on after ``retry_after_s``, or give a sent write up, with 504."""
        if self.replied or self.pool is None or self._connecting is not None or not self.pool.state.suspect:
            return
        waited, options = now - self._sent_at, self.relay.options
        if self._may_send_again():
            if waited >= options.retry_after_s and self.client.body_done:
                self._move_on(Fault.UPSTREAM_SILENT)
        elif self.pool.state.silent and self.client.body_done and waited >= options.abandon_write_after_s:
            self._move_on(Fault.UPSTREAM_SILENT)

    @property
    def is_parked(self) -> bool:
        """Whether it waits for a web server to come back."""
        return self._parked

    def timed_out(self) -> None:
        """No answer, or no more of it, within the longest time allowed."""
        self._leave()
        self._failed_there(try_elsewhere=True)
        self.client.fail(504, Fault.UPSTREAM_TIMEOUT)

    def _move_on(self, fault: Fault) -> None:
        self._leave()
        self._failed_there(try_elsewhere=True)
        self._send_again_or_fail(504, fault)

    def _may_send_again(self) -> bool:
        attempt = Attempt(self.head.method, self._sent, self._kept is not None, self.replied, self._tries)
        options = self.relay.options
        bound = 2 * len(options.servers) + options.max_tries
        return self._dispatches < bound and may_send_again(attempt, options.max_tries)

    def _send_again_or_fail(self, status: int, fault: Fault) -> None:
        if not self._may_send_again():
            self.client.fail(status, fault)
            return
        if self._sent:
            self.relay.retries += 1
            self._sent = False
        self.dispatch()

    def _failed_there(self, *, try_elsewhere: bool) -> None:
        pool = self.pool
        if pool is None:
            return
        pool.state.failures += 1
        if try_elsewhere:
            self._tried = [*self._tried, pool.state]
        self.release_server()

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
        if self._parked:
            self._parked = False
            self.relay.unpark(self)
        self._leave()
        self.release_server()

    # Towards the client

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
        self.replied = True
        client = self.client
        client.transport.write(response + first)
        tunnel = Tunnel(self.relay, self.pool.state, client.transport, upstream.transport)
        self.pool = self.upstream = None  # The tunnel counts as the request in flight now.
        early = client.become_tunnel()
        tunnel.open(early, client_full=client.write_paused, server_full=upstream.write_paused)
