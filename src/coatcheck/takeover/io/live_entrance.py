"""Where a web server takes clients' connections whose TLS it ends itself, as directors pass them on.

Behind the TLS stands the machine of the embedded director, with this one web server to route to: whatever it does for
a request it does here, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from typing import Final, cast

from coatcheck.director.io.client_link import ClientLink
from coatcheck.director.io.relay import Relay
from coatcheck.director.rules.faults import Fault
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.transitions import State
from coatcheck.takeover.io.handshake import Handshake, OpenSslTls
from coatcheck.takeover.io.hello_ahead import FetchesAhead, HelloAhead
from coatcheck.takeover.io.key_log import KeyLog
from coatcheck.takeover.io.tls_transport import TlsTransport, leave
from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.inner_frames import FROM_DIRECTOR, Frame, Hello, commit, frame, read_hello, repeatable
from coatcheck.takeover.rules.live_state import ID_BYTES, LiveState, LiveStateSealer
from coatcheck.takeover.rules.repeatable import OtherResponse
from coatcheck.takeover.rules.tls_records import BadRecord, RecordSplitter, count_encrypted
from coatcheck.tls.turnstile import Turnstile
from coatcheck.tokens.keyring import KeyRing

_MAX_QUESTION_BYTES: Final = 1024
_FIT: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_UNFIT: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HELLO_TIMEOUT_S: Final = 5.0
"""How long a director may take to say which connection it brings."""


class LiveEntrance:
    """The entrance of a web server's own director machine: give its :meth:`link` to a server of the inner socket."""

    def __init__(
        self,
        relay: Relay,
        context: ssl.SSLContext,
        ring: KeyRing | None,
        farm: str,
        sessions: FetchesAhead | None = None,
    ) -> None:
        """``ring``: seals what another web server needs to go on; ``None``: none can.
        ``sessions``: where those are that clients offer, if they must be fetched."""
        self.relay = relay
        self.context = context
        self._sessions = sessions
        self._turnstile = Turnstile(relay.loop)
        self.key_log = None if ring is None else KeyLog(context)
        self.sealer = None if ring is None else LiveStateSealer(ring, farm, os.urandom)
        self.taken_over = 0
        """Connections that another web server began."""
        self.is_fit: Callable[[], bool] = lambda: True
        """Whether directors may bring connections."""
        self.live: set[TlsTransport] = set()
        """The connections that another web server could go on with."""

    def open(self) -> None:
        """Connections come from the inner socket."""

    def close(self) -> None:
        """The inner socket is closed by who opened it."""

    def abort(self) -> None:
        """Links end with their machines."""
        if self.key_log is not None:
            self.key_log.close()
            self.key_log = None

    def draining(self, server: ServerState) -> None:
        """Directors say which connections move."""

    def status(self) -> dict[str, int]:
        return {"taken_over": self.taken_over}

    def renew_states(self) -> None:
        """The key ring has changed: what directors have is sealed anew."""
        for upper in self.live:
            upper.renew_state()

    def hello_ahead(self, link: asyncio.Transport, go_on: Callable[[list[bytes]], None]) -> HelloAhead | None:
        """What holds a handshake's first records until the session that they offer is there; ``None``: nothing does."""
        return None if self._sessions is None else HelloAhead(self._sessions, self._turnstile, link, go_on)

    def link(self) -> InnerLink:
        """The protocol of a new link from a director."""
        return InnerLink(self)


class InnerLink(asyncio.Protocol):
    """One link from a director: one client's connection, from its ClientHello on or from wherever another left it."""

    def __init__(self, entrance: LiveEntrance) -> None:
        self._entrance = entrance
        self._relay = entrance.relay
        self._splitter = RecordSplitter(*FROM_DIRECTOR)
        self._hello: Hello | None = None
        self._handshake: Handshake | None = None
        self._ahead: HelloAhead | None = None
        self._upper: TlsTransport | None = None
        self._connection = b""
        self._left = False
        self._is_to_move = self._is_to_end = False
        self._question = b""
        self._client: ClientLink | None = None
        self._beneath = cast(asyncio.Transport, None)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._beneath = cast(asyncio.Transport, transport)
        self._late = self._relay.loop.call_later(HELLO_TIMEOUT_S, self._beneath.abort)

    def connection_lost(self, error: Exception | None) -> None:
        if self._handshake is not None:
            self._end_handshake()
        self._in_time()
        if self._upper is not None:
            self._entrance.live.discard(self._upper)
            self._upper.link_lost(error)

    def pause_writing(self) -> None:
        if self._upper is not None:
            self._upper.link_full()

    def resume_writing(self) -> None:
        if self._upper is not None:
            self._upper.link_ready()

    def data_received(self, data: bytes) -> None:
        if self._left or (self._upper is not None and self._upper.is_closing()):
            return  # The director has not read our last word yet.
        if self._hello is None and (self._question or data.startswith(b"GET ")):
            self._answer_health(data)
            return
        try:
            records = self._splitter.feed(data)
            if self._hello is None and records:
                hello = self._hello = read_hello(records.pop(0))
                self._begin(hello)
        except BadRecord as error:
            self._relay.seldom.warning("a link that is no director's: %s", error)
            self._beneath.abort()
            return
        self._take(records)

    def _answer_health(self, data: bytes) -> None:
        """A director asks whether connections may be brought here, in the words in which it asks others."""
        self._question += data
        if b"\r\n\r\n" in self._question:
            fit = self._entrance.is_fit()
            self._beneath.write(_FIT if fit else _UNFIT)
            self._beneath.close()
        elif len(self._question) > _MAX_QUESTION_BYTES:
            self._beneath.abort()

    def drop(self) -> None:
        """There are too many handshakes, and this one is the oldest."""
        if self._handshake is not None:
            self._end_handshake()
            self._leave(frame(Frame.BREAK))

    def _begin(self, hello: Hello) -> None:
        self._in_time()
        if hello.state:
            self._go_on(hello)
            return
        self._connection = os.urandom(ID_BYTES)
        self._relay.traffic.begin_handshake(self)
        self._relay.flush()
        self._handshake = Handshake(self._entrance.context, self._entrance.key_log)
        self._ahead = self._entrance.hello_ahead(self._beneath, self._take)
        self._late = self._relay.loop.call_later(self._relay.options.tls_handshake_timeout_s, self._handshake_late)

    def _take(self, records: list[bytes]) -> None:
        for at, record in enumerate(records):
            if self._left or self._beneath.is_closing():
                return
            if record[0] == Frame.MOVE:
                self._is_to_move = True
                if self._upper is not None:
                    self._upper.move()
            elif record[0] == Frame.END:
                self._is_to_end = True
                if self._upper is not None:
                    self._end_when_idle(self._upper)
            elif record[0] == Frame.HELLO:
                self._beneath.abort()
            elif self._ahead is not None and not self._ahead.is_over:
                self._ahead.hold(record)
            elif self._handshake is not None:
                self._shake_hands(self._handshake, record)
            elif self._upper is not None:
                behind = next((n for n in range(at, len(records)) if records[n][0] >= Frame.HELLO), len(records))
                self._upper.records(records[at:behind])
                self._take(records[behind:])
                return

    # The handshake

    def _shake_hands(self, handshake: Handshake, record: bytes) -> None:
        try:
            said = handshake.feed(record)
        except (ssl.SSLError, OSError, ValueError) as error:
            self._relay.traffic.count(Fault.HANDSHAKE_FAILED)
            self._relay.seldom.write(logging.INFO, "a TLS handshake failed: %s", error, kind="handshake")
            self._end_handshake()
            self._leave(handshake.last_words() + frame(Frame.CLOSE))
            return
        hello = self._hello
        if handshake.done is None or hello is None:
            self._beneath.write(said)
            return
        self._end_handshake()
        upper = self._transport(handshake.done)
        answered = commit(handshake.done.read, count_encrypted(said))
        # Nothing that is sealed with the new keys leaves before another server could go on with them.
        self._beneath.write(upper.checkpoint() + frame(Frame.ESTABLISHED) + answered + said)
        self._enter(upper, hello)

    def _handshake_late(self) -> None:
        self._relay.traffic.count(Fault.HANDSHAKE_FAILED)
        self._end_handshake()
        self._leave(frame(Frame.BREAK))

    def _end_handshake(self) -> None:
        self._in_time()
        self._handshake = None
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None
        self._relay.traffic.end_handshake(self)

    # Going on with what another web server began

    def _go_on(self, hello: Hello) -> None:
        tls = self._opened(hello)
        if tls is None:
            self._leave(frame(Frame.BREAK))
            return
        self._entrance.taken_over += 1
        upper = self._transport(tls)
        said = b""
        if hello.repeatable:
            updates = tls.renew_key()
            what = self._repeatable(upper, hello, count_encrypted(updates))
            if not what:
                self._leave(frame(Frame.BREAK))
                return
            said = upper.checkpoint() + what + updates
        # Else nothing is sent before there is an answer: clients close an idle connection on which something comes.
        self._beneath.write(frame(Frame.ESTABLISHED) + said)
        self._enter(upper, hello)

    def _repeatable(self, upper: TlsTransport, hello: Hello, updates: int) -> bytes:
        """A part of a response has left: the rest of the very same one is to follow. Empty if that cannot be."""
        sealer = self._entrance.sealer
        what = None if sealer is None else sealer.open_repeatable(hello.repeatable)
        if what is None:
            return b""
        try:
            upper.go_on_with(what, hello.left)
        except OtherResponse:
            return b""
        # The KeyUpdates leave first, and are no part of it.
        return repeatable(hello.left, updates, hello.repeatable)

    def _opened(self, hello: Hello) -> EstablishedTls | None:
        sealer = self._entrance.sealer
        state = None if sealer is None else sealer.open(hello.state)
        if state is None:
            self._relay.seldom.warning("the state of a TLS connection cannot be read here: do all have the same keys?")
            return None
        self._connection = state.connection
        try:
            return EstablishedTls.taken_over(state, hello.committed, hello.delivered)
        except ValueError as error:
            self._relay.seldom.warning("the state of a TLS connection does not fit: %s", error)
            return None

    def _transport(self, tls: EstablishedTls | OpenSslTls) -> TlsTransport:
        assert self._hello is not None
        can_move = self._entrance.sealer is not None and isinstance(tls, EstablishedTls)
        checkpoint = self._checkpoint if can_move else None
        seal_repeatable = self._entrance.sealer.seal_repeatable if self._entrance.sealer is not None else None
        return TlsTransport(
            self._relay.loop, self._beneath, self._hello, tls, checkpoint, seal_repeatable if can_move else None
        )

    def _checkpoint(self, tls: EstablishedTls, answered: int) -> bytes:
        sealer = self._entrance.sealer
        assert sealer is not None
        state: LiveState = tls.state(self._connection, os.urandom(ID_BYTES), answered)
        return sealer.seal(state)

    def _enter(self, upper: TlsTransport, hello: Hello) -> None:
        relay = self._relay
        # The director has let it in; whether it is one too many is not judged twice.
        guest = relay.traffic.enter(hello.peer[0])
        client = self._client = ClientLink(relay, guest, self._beneath)
        self._upper = upper
        self._entrance.live.add(upper)
        upper.begin(client, lambda: client.machine.state is State.IDLE, lambda: _replays(client, hello))
        if self._is_to_move:
            upper.move()
        if self._is_to_end:
            self._end_when_idle(upper)

    def _end_when_idle(self, upper: TlsTransport) -> None:
        if self._client is not None:
            self._client.machine.is_last = True
        upper.end_when_idle()

    def _leave(self, last_words: bytes) -> None:
        self._left = True
        self._beneath.write(last_words)
        leave(self._relay.loop, self._beneath)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _replays(client: ClientLink, hello: Hello) -> None:
    client.machine.sends_before = hello.sends
    client.machine.begun_before = hello.begun
