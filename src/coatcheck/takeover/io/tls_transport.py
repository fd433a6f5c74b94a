"""The transport of a client's connection in the web server that ends its TLS: data on this side, records on the other.

What is written in one round of the event loop leaves together, behind the word that says what it answers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Final, cast

from coatcheck.takeover.io.handshake import OpenSslTls
from coatcheck.takeover.rules.established import ClientAlert, EstablishedTls
from coatcheck.takeover.rules.harmless import is_harmless
from coatcheck.takeover.rules.inner_frames import Frame, Hello, commit, frame, repeatable
from coatcheck.takeover.rules.repeatable import OtherResponse, Repeatable, ResponseMark, Skipper, Told, is_interim
from coatcheck.takeover.rules.tls_records import count_encrypted
from coatcheck.takeover.rules.traffic_keys import Alert, TlsViolation

LEAVE_TIMEOUT_S: Final = 60.0
"""How long a director may take to read our last word: it reads no faster than its client."""
_SAID_POLL_S: Final = 0.005
"""How often is looked whether a word has left, where the director takes nothing for the moment."""


def leave(loop: asyncio.AbstractEventLoop, link: asyncio.Transport) -> None:
    """The last word has been said on a link to a director, which ends the link when it has read it.

    If we ended it, what the director has just written would come back to it as an error, and the last word be lost.
    """
    if not link.is_closing():
        link.resume_reading()
        loop.call_later(LEAVE_TIMEOUT_S, link.abort)


class TlsTransport(asyncio.Transport):
    """What the protocol of a client's connection writes to; made when the handshake is done, or taken over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        beneath: asyncio.Transport,
        hello: Hello,
        tls: EstablishedTls | OpenSslTls,
        checkpoint: Callable[[EstablishedTls, int], bytes] | None,
        seal_repeatable: Callable[[Repeatable], bytes] | None = None,
    ) -> None:
        """``beneath``: the link to the director. ``checkpoint``: the sealed state, for what is answered.

        Without the two no other web server can go on with the connection.
        """
        super().__init__({"peername": hello.peer, "sockname": hello.local})
        self._loop = loop
        self._beneath = beneath
        self._tls = tls
        self._checkpoint = checkpoint
        self._seal_repeatable = seal_repeatable
        self._mark = ResponseMark()
        self._skipper: Skipper | None = None
        self._protocol = cast(asyncio.Protocol, None)
        self._is_settled: Callable[[], bool] = lambda: False
        self._replays: Callable[[], None] = lambda: None
        self._replayed_to = hello.committed + hello.replayed
        self._unread: list[bytes] = []
        self._held = b""
        """Data that is looked at once the director knows."""
        self._begun = False
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._flush: asyncio.Handle | None = None
        self._answered = tls.read
        self._paused = self._closing = self._moving = self._ending = False

    def begin(self, protocol: asyncio.Protocol, is_settled: Callable[[], bool], replays: Callable[[], None]) -> None:
        """``is_settled``: whether all that the protocol was given is answered.

        ``replays`` is called before the protocol is given what another web server had before.
        """
        self._protocol = protocol
        self._is_settled = is_settled
        self._replays = replays
        protocol.connection_made(self)

    def go_on_with(self, what: Repeatable, left: int) -> None:
        """The next response has left in part; ``left``: so many bytes. Raises :class:`OtherResponse`."""
        self._skipper = Skipper(what, left)
        self._mark.go_on(what, left)

    # The side of the director

    def checkpoint(self) -> bytes:
        """The frame that leaves our state with the director; nothing where no other server can go on."""
        if self._checkpoint is None or not isinstance(self._tls, EstablishedTls):
            return b""
        return frame(Frame.STATE, self._checkpoint(self._tls, self._answered))

    def records(self, records: list[bytes]) -> None:
        """The client's records, in their order."""
        if self._unread or self._paused or self._held:
            self._unread += records
        else:
            self._read(records)

    def _read(self, records: list[bytes]) -> None:
        for at, record in enumerate(records):
            if self._closing:
                return
            if self._paused or self._held:
                self._unread = records[at:] + self._unread
                return
            self._read_one(record)
        self._schedule()

    def _read_one(self, record: bytes) -> None:
        tls = self._tls
        try:
            data, reply = tls.open(record)
        except TlsViolation as violation:
            if not isinstance(violation, ClientAlert):
                self._beneath.write(b"".join([*self._fresh_key(), tls.alert(violation.alert)]))
            self._end(Frame.CLOSE)
            return
        if reply or tls.must_checkpoint:
            # The state goes first: what is sealed with a new key must never leave before it is known elsewhere.
            self._beneath.write(self.checkpoint() + self._around(reply) + reply)
        if data:
            if self._must_say_begun(data):
                self._held = data
                self._say_begun()
                return
            self._give(data)
        if tls.closed_by_client and not self._closing:
            self._protocol.eof_received()
            self.close()

    def _give(self, data: bytes) -> None:
        if self._tls.read <= self._replayed_to:
            self._replays()
        self._mark.asked(data)
        self._protocol.data_received(data)

    def _must_say_begun(self, data: bytes) -> bool:
        """Whether the director does not know yet that something begins which must not be done twice."""
        if self._begun or self._checkpoint is None:
            return False
        return not (self._is_settled() and is_harmless(data))

    def _say_begun(self) -> None:
        """Nothing is done before the word is in the kernel's hands: from there it arrives, whoever dies."""
        self._begun = True
        said = frame(Frame.BEGUN)
        sent = 0
        if not self._beneath.get_write_buffer_size() and not self._beneath.is_closing():
            try:
                sent = os.write(self._beneath.get_extra_info("socket").fileno(), said)
            except OSError:
                sent = 0  # Its buffer is full, or its end has come: what is below finds out.
        if sent < len(said):
            self._beneath.write(said[sent:])
        self._go_on_when_said()

    def _go_on_when_said(self) -> None:
        if self._closing or self._beneath.is_closing():
            return
        if self._beneath.get_write_buffer_size():
            # Nothing more is read meanwhile: it would only lie here.
            self._beneath.pause_reading()
            self._loop.call_later(_SAID_POLL_S, self._go_on_when_said)
            return
        if not self._paused:
            self._beneath.resume_reading()
        data, self._held = self._held, b""
        self._give(data)
        if not self._paused and self._unread:
            self._read_on()
        self._schedule()

    def move(self) -> None:
        """The director wants another server to go on, as soon as nothing is under way; if none can, that is the end."""
        if self._checkpoint is None or not isinstance(self._tls, EstablishedTls):
            self.end_when_idle()
            return
        self._moving = True
        self._schedule()

    def end_when_idle(self) -> None:
        """Close it as soon as nothing is under way."""
        self._ending = True
        self._schedule()

    def renew_state(self) -> None:
        """Leave the state with the director anew: the key ring has changed."""
        if not self._closing:
            self._beneath.write(self.checkpoint() + self._disturbed())

    def link_full(self) -> None:
        """The director takes no more."""
        self._protocol.pause_writing()

    def link_ready(self) -> None:
        self._protocol.resume_writing()

    def link_lost(self, error: Exception | None) -> None:
        """The client is gone, or the director."""
        self._closing = True
        if self._flush is not None:
            self._flush.cancel()
        self._protocol.connection_lost(error)

    # The side of the protocol

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing or not data:
            return
        self._pending.append(bytes(data))
        self._pending_bytes += len(data)
        self._schedule()

    def _schedule(self) -> None:
        if self._flush is None and not self._closing:
            self._flush = self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        if self._closing:
            return
        settled = not self._unread and not self._held and self._is_settled()
        fresh = self._fresh_key() if self._pending else []
        try:
            out = self._sealed(is_last=settled)
        except OtherResponse:
            self._end(Frame.BREAK)
            return
        if settled and self._tls.read > self._answered:
            # Announced ahead: there is no moment in which the client has the answer and nobody knows it.
            self._answered = self._tls.read
            out.insert(0, commit(self._answered, sum(map(count_encrypted, out))))
            self._mark.begin_anew()
            self._skipper = None
            self._begun = False
        if settled and self._moving:
            out.append(frame(Frame.RELEASED))
            self._closing = True
        if fresh or out:
            self._beneath.write(b"".join([*fresh, *out]))
        if self._closing:
            leave(self._loop, self._beneath)
        elif settled and self._ending:
            self.close()

    def _sealed(self, *, is_last: bool) -> list[bytes]:
        """What waits, as records and what has to be said before them. Raises :class:`OtherResponse`.

        ``is_last``: with it all is answered, or over.
        """
        if not self._pending:
            return []
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        if self._skipper is not None:
            data = self._skipper.feed(data)
            if self._skipper.is_done:
                self._skipper = None
            if not data:
                return []
        if not is_last and not self._mark.has_left and is_interim(data):
            sealed = self._tls.seal(data)
            # Nothing is answered by it, and it is no part of the response.
            return [commit(self._answered, len(sealed)), *sealed] if self._checkpoint is not None else sealed
        said: list[bytes] = []
        told = self._mark.leaves(data)
        if is_last or self._seal_repeatable is None:
            pass
        elif told is Told.REPEATABLE and self._mark.what is not None:
            said.append(repeatable(0, 0, self._seal_repeatable(self._mark.what)))
        elif told is Told.OPAQUE:
            said.append(repeatable(0, 0, b""))
        return said + self._tls.seal(data)

    def _fresh_key(self) -> list[bytes]:
        """What has to come before anything that is sealed, if that needs another key."""
        if not self._tls.needs_key_update:
            return []
        updates = self._tls.renew_key()
        return [self.checkpoint(), self._around(updates), updates]

    def _around(self, reply: bytes) -> bytes:
        """What has to be said before a record that is no part of a response."""
        if not reply or self._checkpoint is None:
            return b""
        if self._mark.has_left:
            return self._disturbed()
        return commit(self._answered, count_encrypted(reply))

    def _disturbed(self) -> bytes:
        """A record of another kind leaves in the midst of a response, of which no more can be counted then."""
        return repeatable(0, 0, b"") if self._mark.disturb() is Told.OPAQUE else b""

    def close(self) -> None:
        if self._closing:
            return
        fresh = self._fresh_key()
        try:
            out = self._sealed(is_last=True)
        except OtherResponse:
            self._end(Frame.BREAK)
            return
        self._beneath.write(b"".join([*fresh, *out, self._tls.alert(Alert.CLOSE_NOTIFY)]))
        self._end(Frame.CLOSE)

    def abort(self) -> None:
        if not self._closing:
            self._pending.clear()
            self._pending_bytes = 0
            self._end(Frame.BREAK)
        elif self._beneath.get_write_buffer_size():
            # Our last word does not leave. One that has left is read when the director comes to it.
            self._beneath.abort()

    def _end(self, how: Frame) -> None:
        self._closing = True
        self._beneath.write(frame(how))
        leave(self._loop, self._beneath)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError("TLS has no half of a connection")

    def pause_reading(self) -> None:
        self._paused = True
        if not self._beneath.is_closing():
            self._beneath.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not self._beneath.is_closing() and not self._held:
            self._beneath.resume_reading()
        if self._unread:
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._paused and not self._closing and not self._held:
            records, self._unread = self._unread, []
            self._read(records)

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def get_write_buffer_size(self) -> int:
        return self._pending_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._beneath.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name in ("peername", "sockname"):
            return super().get_extra_info(name, default)
        return self._beneath.get_extra_info(name, default)
