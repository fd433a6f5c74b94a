"""A link that mends itself: handshake, health and reconnection around one pipelined connection.

``reachable`` means that the handshake succeeded and that since then no call stayed without an answer for
``timeout_s``. A frozen peer (its kernel still accepts) is found by the oldest outstanding call, or by a PING
when the link is idle. From then on every call is answered at once, until a new handshake succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, cast

import hiredis

from coatcheck import resp
from coatcheck.event_log import log_event
from coatcheck.peers.credentials import check_same_user
from coatcheck.peers.dial import connect_unix
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.bulletin import Bulletin, OnMessage
from coatcheck.stores.connection import Connection, Sink
from coatcheck.stores.events import EventSink
from coatcheck.stores.greeting import HandshakeRefused, Steps, greet, say
from coatcheck.stores.port import Unreachable
from coatcheck.stores.reachability import Reachability

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 0.3
DEFAULT_IDLE_PING_S: Final = 0.25
DEFAULT_CONNECT_TIMEOUT_S: Final = 1.0
FIRST_RETRY_S: Final = 0.05
MAX_RETRY_S: Final = 1.0
STEADY_S: Final = 1.0
"""A connection that lived this long starts the back-off anew; one that did not, lengthens it."""
SWEEPS_PER_TIMEOUT: Final = 8
MAX_LATE_SWEEPS: Final = 2
MAX_SUBSCRIPTIONS: Final = 64
CLOCK_PERIOD_S: Final = 1.0
"""So often the server is asked for its time, if anybody wants to know."""
_PING: Final = resp.command(b"PING")
_TIME: Final = resp.command(b"TIME")


class Link:
    """Calls to one RESP server, and the messages it publishes.

    ``prepare`` makes further steps of the handshake (loading scripts, say): each must be answered without an error
    before the link counts as reachable. ``beat``: what is answered without an error only by who takes puts.
    ``channel_prefix`` precedes server IDs in channel names. Calls are never retried here: whether a lost call happened
    is unknown.
    """

    def __init__(
        self,
        name: str,
        address: StoreAddress,
        *,
        prepare: Callable[[], Steps[None]] | None = None,
        beat: bytes = _PING,
        channel_prefix: bytes = b"",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        idle_ping_s: float = DEFAULT_IDLE_PING_S,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
        on_event: EventSink = log_event,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.reachability = Reachability(name, on_event)
        self.timeout_s = timeout_s
        self._sweep_s = timeout_s / SWEEPS_PER_TIMEOUT
        self._idle_ping_s = idle_ping_s
        self._connect_timeout_s = connect_timeout_s
        self._prepare = prepare or partial(say, ())
        self._beat_request = beat
        self._channel_prefix = channel_prefix
        self._on_connected = on_connected
        self._bulletin = Bulletin()
        self._live: Connection | None = None
        self.call: Callable[[bytes, Sink], None] = self._answer_down
        """Send an encoded request; the sink gets hiredis's reply or :class:`Unreachable`, exactly once. While the link
        is down the answer comes before this returns; while it is up this is the connection's own."""
        self._down = Unreachable("not opened")
        self._gone = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._on_time: Callable[[str, float, float], None] | None = None
        self._asked_time_at = 0.0
        self._on_heard: Callable[[str, float], None] | None = None
        self._beat_s = 0.0
        self._beat_timer: asyncio.TimerHandle | None = None
        self._in_order = False
        self._swept_at = 0.0
        self._late_sweeps = 0
        self._closed = False

    def _answer_down(self, request: bytes, sink: Sink) -> None:
        sink(self._down)

    def subscribe(self, server_id: bytes, on_message: OnMessage) -> None:
        """Receive the messages for ``server_id``, now and after each reconnection.

        Raises ``ValueError`` above :data:`MAX_SUBSCRIPTIONS` server IDs.
        """
        known = self._bulletin.server_ids()
        if server_id not in known and len(known) >= MAX_SUBSCRIPTIONS:
            raise ValueError(f"at most {MAX_SUBSCRIPTIONS} server IDs can be subscribed to")
        first = self._bulletin.subscribe(server_id, on_message)
        if first and self._live is not None:
            self._send_subscribe(self._live, server_id)

    def watch_clock(self, on_time: Callable[[str, float, float], None]) -> None:
        """Call ``on_time(name, round_trip_s, unix_ms)`` when connected, and about once a second."""
        self._on_time = on_time

    def watch_notices(self, on_heard: Callable[[str, float], None], period_s: float) -> None:
        """Call ``on_heard(name, sent_at)`` about every ``period_s``, while the server answers what it is asked and
        delivers notices in the same order: all from before ``sent_at`` (monotonic seconds) have come."""
        self._on_heard, self._beat_s = on_heard, period_s
        self._beat()

    def publish(self, server_id: bytes, message: bytes) -> None:
        """Send a message to the subscribers of ``server_id``, at most once."""
        self.call(resp.command(b"PUBLISH", self._channel_prefix + server_id, message), _ignore)

    async def open(self) -> None:
        """Connect; returns after the first attempt, whatever came of it."""
        if self._keeper is not None:
            raise RuntimeError(f"link {self.name} is open already")
        self._closed = False
        self._loop = asyncio.get_running_loop()
        first_attempt = asyncio.Event()
        self._keeper = self._loop.create_task(self._keep(first_attempt), name=f"link {self.name}")
        await first_attempt.wait()

    async def aclose(self) -> None:
        """Close the connection, answer outstanding calls as unreachable, and stop."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        self._closed = True
        if self._live is not None:
            self._live.drop("closed")
        self._down = Unreachable("closed")

    # Owner of connections

    def lost(self, connection: Connection, why: str) -> None:
        if connection is not self._live:
            return
        self._live = None
        self.call = self._answer_down
        self._down = Unreachable(why)
        for timer in (self._sweep_timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        self._gone.set()
        self.reachability.set(False, why, event=not self._closed)

    def pushed(self, channel: bytes, message: bytes) -> None:
        self._bulletin.publish(channel[len(self._channel_prefix) :], message)

    # The keeper: one task that connects again and again

    async def _keep(self, first_attempt: asyncio.Event) -> None:
        assert self._loop is not None
        retry_s = FIRST_RETRY_S
        try:
            while True:
                began_at = self._loop.time()
                why = await self._connect()
                if why is not None:
                    self._down = Unreachable(why)
                    self.reachability.set(False, why)
                first_attempt.set()
                if why is None:
                    await self._gone.wait()
                    if self._loop.time() - began_at >= STEADY_S:
                        retry_s = FIRST_RETRY_S
                # Jitter, so that the web servers do not all come back in one moment.
                await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
                retry_s = min(retry_s * 2, MAX_RETRY_S)
        finally:
            first_attempt.set()

    async def _connect(self) -> str | None:
        """One attempt; answers why it failed, or ``None`` once the link is reachable."""
        assert self._loop is not None
        connection = Connection(self, self._loop)
        why = "given up"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._dial(connection)
                subscribed = await self._handshake(connection)
            if not connection.lost:
                self._go_live(connection, subscribed)
                return None
            why = "connection lost after the handshake"
        except TimeoutError:
            why = f"no answer to the handshake from {self.address}"
        except HandshakeRefused as refused:
            why = f"the handshake was refused by {self.address}: {refused}"
        except OSError as wrong:
            why = f"cannot connect to {self.address}: {wrong.strerror or wrong}"
        finally:
            if connection is not self._live:
                connection.drop(why)
        return why

    async def _dial(self, connection: Connection) -> None:
        assert self._loop is not None
        address = self.address
        if address.path:
            sock = await connect_unix(address.path)
            try:
                if address.ours:
                    check_same_user(sock)
                await self._loop.create_unix_connection(lambda: connection, sock=sock)
            except BaseException:
                sock.close()
                raise
        else:
            await self._loop.create_connection(
                lambda: connection,
                address.host,
                address.port,
                ssl=address.tls,
                server_hostname=address.tls_name or None,
            )

    async def _handshake(self, connection: Connection) -> list[bytes]:
        """Authenticate, prepare, subscribe, PING; answers the server IDs that were subscribed to."""
        self._in_order = await self._take_steps(connection, greet(self.address))
        await self._take_steps(connection, self._prepare())
        server_ids = self._bulletin.server_ids()
        for server_id in server_ids:
            await self._ask(connection, self._subscribe_request(server_id))
        await self._ask(connection, _PING)
        return server_ids

    async def _take_steps(self, connection: Connection, steps: Steps[T]) -> T:
        try:
            request = next(steps)
            while True:
                request = steps.send(await self._ask(connection, request))
        except StopIteration as done:
            return cast("T", done.value)

    async def _ask(self, connection: Connection, request: bytes) -> Any:
        assert self._loop is not None
        answered: asyncio.Future[Any] = self._loop.create_future()
        connection.call(request, partial(_settle, answered))
        reply = await answered
        if isinstance(reply, Unreachable):
            raise ConnectionError(reply.why)
        if isinstance(reply, hiredis.ReplyError):
            raise HandshakeRefused(str(reply))
        return reply

    def _go_live(self, connection: Connection, subscribed: list[bytes]) -> None:
        assert self._loop is not None
        self._gone.clear()
        self._live = connection
        self.call = connection.call
        self._late_sweeps = 0
        self._swept_at = self._loop.time()
        self._sweep_later()
        for server_id in self._bulletin.server_ids():
            if server_id not in subscribed:
                self._send_subscribe(connection, server_id)
        self._ask_time(connection)
        self._beat()
        self.reachability.set(True, f"connected to {self.address}")
        if self._on_connected is not None:
            self._on_connected()

    # Health

    def _sweep_later(self) -> None:
        assert self._loop is not None
        # The links of a process are swept together: it wakes up for all of them at once.
        sweeps = int(self._loop.time() / self._sweep_s + 1.5)
        self._sweep_timer = self._loop.call_at(sweeps * self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        assert self._loop is not None
        live = self._live
        if live is None:
            return
        now = self._loop.time()
        # If our own loop stood still, the replies may lie in the socket: let it read them first.
        stood_still = now - self._swept_at > 2 * self._sweep_s and self._late_sweeps < MAX_LATE_SWEEPS
        self._late_sweeps = self._late_sweeps + 1 if stood_still else 0
        self._swept_at = now
        self._sweep_later()
        if now - self._asked_time_at >= CLOCK_PERIOD_S:
            self._ask_time(live)
        oldest = live.oldest_call_at()
        if oldest is None:
            if now - live.idle_since >= self._idle_ping_s:
                live.call(_PING, lambda reply: self._must_succeed(live, "PING", reply))
        elif now - oldest >= self.timeout_s - self._sweep_s and not stood_still:
            live.drop(f"no answer within {self.timeout_s:g} s")

    def _ask_time(self, live: Connection) -> None:
        assert self._loop is not None
        self._asked_time_at = self._loop.time()
        if self._on_time is not None:
            live.call(_TIME, partial(self._told_time, self._asked_time_at))

    def _beat(self) -> None:
        """The next heart-beat, where it says something: the first one of a connection follows its subscriptions."""
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        live, loop = self._live, self._loop
        if live is None or loop is None or self._on_heard is None or not self._in_order:
            return
        self._beat_timer = loop.call_later(self._beat_s, self._beat)
        live.call(self._beat_request, partial(self._beaten, live, time.monotonic()))

    def _beaten(self, live: Connection, sent_at: float, reply: Any) -> None:
        """A heart-beat was answered. An error is no answer: a primary that was demoted goes on reading."""
        if (
            live is self._live
            and self._on_heard is not None
            and not isinstance(reply, Unreachable | hiredis.ReplyError)
        ):
            self._on_heard(self.name, sent_at)

    def _told_time(self, asked_at: float, reply: Any) -> None:
        """A server that may not or cannot tell has no vote; that is no fault of the connection."""
        assert self._loop is not None
        round_trip_s = self._loop.time() - asked_at
        if self._on_time is None or not isinstance(reply, list) or len(reply) != 2:
            return
        with contextlib.suppress(ValueError, TypeError):
            self._on_time(self.name, round_trip_s, int(reply[0]) * 1000 + int(reply[1]) / 1000)

    def _send_subscribe(self, live: Connection, server_id: bytes) -> None:
        live.call(self._subscribe_request(server_id), lambda reply: self._must_succeed(live, "SUBSCRIBE", reply))

    def _subscribe_request(self, server_id: bytes) -> bytes:
        return resp.command(b"SUBSCRIBE", self._channel_prefix + server_id)

    def _must_succeed(self, live: Connection, what: str, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            live.drop(f"{what} was refused: {reply}")


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if not future.done():
        future.set_result(reply)


def _ignore(reply: Any) -> None:
    """What becomes of a published message is nobody's business: notices may be lost."""
