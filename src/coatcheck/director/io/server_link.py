"""Connections to web servers: what comes on them goes to whoever has one at the moment, or to nobody."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Final, Protocol, cast

from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.idle_pool import IdlePool
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Traffic

_READ_BYTES: Final = 64 * 1024


class LinkUser(Protocol):
    """The machine of a client's connection, as far as its web server's link is concerned."""

    def connected(self, *, reused: bool, full: bool) -> None:
        """A link was had."""

    def not_connected(self, failure: Failure) -> None:
        """No link was to be had."""

    def server_bytes(self, data: bytes) -> None:
        """Bytes came."""

    def server_ended(self, ending: Ending) -> None:
        """The link has ended."""

    def server_full(self) -> None:
        """It takes no more for now."""

    def server_ready(self) -> None:
        """It takes bytes again."""


class LinkOwner(Protocol):
    """A client's connection whose request is on a link."""

    @property
    def machine(self) -> LinkUser:
        """Who is told what happens."""
        ...

    connecting: asyncio.Task[None] | None
    """What opens a connection for it."""

    def attach(self, link: ServerLink, *, reused: bool) -> None:
        """A connection to a web server was had."""

    def perform(self) -> None:
        """Carry out what the machine asks for."""


class ServerPool:
    """One web server's connections that are in no use."""

    __slots__ = ("_flush", "_traffic", "idle", "server", "state")

    def __init__(self, traffic: Traffic, flush: Callable[[], None], server: WebServer, state: ServerState) -> None:
        """``flush`` carries out what the traffic asks for."""
        self._traffic = traffic
        self._flush = flush
        self.server = server
        self.state = state
        self.idle: IdlePool[ServerLink] = IdlePool(traffic.limits.max_idle_upstream, traffic.limits.upstream_idle_s)

    def take_quiet(self) -> ServerLink | None:
        """An open connection, of which the kernel was asked, too: for a request that must not be sent twice.

        The web server may close a connection at any moment. The event loop tells us, but only in its next round;
        the kernel knows at once. What is left is the time that the close itself is under way.
        """
        while (link := self.idle.take()) is not None:
            if link.is_quiet():
                return link
            link.transport.close()
        return None

    def keep(self, link: ServerLink) -> None:
        """A connection is in no use any more: it waits here, or is closed."""
        if link.is_gone or not self.idle.keep(link, self._traffic.now):
            link.transport.close()

    def heard(self) -> None:
        """Bytes came from the web server that nobody waited for."""
        self._traffic.heard(self.state)
        self._flush()

    def close_expired(self) -> None:
        """Close what nobody has used for too long."""
        for link in self.idle.expired(self._traffic.now):
            link.transport.close()

    def close_unused(self) -> None:
        """Close all that wait here."""
        for link in self.idle.take_all():
            link.transport.close()


class ServerLink(asyncio.Protocol):
    """One connection to a web server."""

    __slots__ = ("_buffer_bytes", "is_full", "is_gone", "owner", "pool", "reads_to_the_end", "transport")

    def __init__(self, options: DirectorOptions, pool: ServerPool) -> None:
        self._buffer_bytes = options.buffer_bytes
        self.pool = pool
        self.transport = cast(asyncio.Transport, None)
        self.owner: LinkOwner | None = None
        self.is_full = self.is_gone = False
        self.reads_to_the_end = False
        """Whether all counts that the web server has said, also where a write was what showed that it is gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(self._buffer_bytes)

    def is_quiet(self) -> bool:
        """Whether the kernel has neither bytes nor an end of stream for us."""
        if self.transport.is_closing():
            return False
        descriptor = self.transport.get_extra_info("socket").fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def data_received(self, data: bytes) -> None:
        owner = self.owner
        if owner is None:
            # Nobody asked: whatever this is, it must not become the answer to the next request.
            self.pool.idle.forget(self)
            self.pool.heard()
            self.transport.close()
            return
        owner.machine.server_bytes(data)
        owner.perform()

    def eof_received(self) -> None:
        self._ended(Ending.CLEAN)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self.reads_to_the_end:
            self._read_rest()
        reset = isinstance(error, ConnectionResetError)
        self._ended(Ending.RESET if reset else Ending.BROKEN if error is not None else Ending.CLEAN)

    def server_died(self) -> None:
        """Its process has ended: what it has said is in the kernel, and then comes the end."""
        self._read_rest()
        self._ended(Ending.BROKEN)

    def _read_rest(self) -> None:
        """Hand on what the kernel holds; event loops leave it there after a write that failed."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        while self.owner is not None:
            try:
                data = os.read(descriptor, _READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self.data_received(data)

    def _ended(self, ending: Ending) -> None:
        self.is_gone = True
        self.pool.idle.forget(self)
        owner = self.owner
        if owner is not None:
            owner.machine.server_ended(ending)
            owner.perform()

    def pause_writing(self) -> None:
        self.is_full = True
        if self.owner is not None:
            self.owner.machine.server_full()
            self.owner.perform()

    def resume_writing(self) -> None:
        self.is_full = False
        if self.owner is not None:
            self.owner.machine.server_ready()
            self.owner.perform()

    def drop(self) -> None:
        """End the connection in the midst of an exchange: what would still come on it concerns nobody."""
        self.owner = None
        self.transport.abort()
