"""Two connections joined after an upgrade: bytes pass both ways, each way with back-pressure and its own end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.routing import ServerState

if TYPE_CHECKING:
    from coatcheck.director.relay import Relay


class Tunnel:
    """A WebSocket between a client and a web server (RFC 6455, 4.1)."""

    __slots__ = ("_ends", "_guests", "_relay", "draining_since", "last_byte_at", "state")

    def __init__(
        self,
        relay: Relay,
        state: ServerState,
        client: asyncio.Transport,
        server: asyncio.Transport,
        guests: list[Guest],
    ) -> None:
        self._relay = relay
        self._guests = guests
        self.state = state
        self.last_byte_at = relay.now
        self.draining_since: float | None = None
        self._ends = (_TunnelEnd(self, client, server), _TunnelEnd(self, server, client))

    def open(self, early: bytes, *, client_full: bool, server_full: bool) -> None:
        """Take both connections over; ``early`` are bytes of the client that came before the upgrade was agreed.

        A side whose write buffer is full already says so no second time, hence the flags.
        """
        self._relay.tunnels.add(self)
        client, server = self._ends
        for end, other_full in ((client, server_full), (server, client_full)):
            end.transport.set_protocol(end)
            if end.transport.is_closing():
                self.close()
                return
            if other_full:
                end.transport.pause_reading()
            else:
                end.transport.resume_reading()
        if early:
            server.transport.write(early)

    def passed(self) -> None:
        """Bytes came by."""
        self.last_byte_at = self._relay.now

    def ended(self) -> None:
        """One connection is gone, so the other has nobody to talk to."""
        if self in self._relay.tunnels:
            self._relay.tunnels.discard(self)
            self.state.in_flight -= 1
            for guest in self._guests:
                guest.leave()
            self.close()

    def eof(self) -> bool:
        """One side has no more to say; answers whether the other one may go on."""
        if all(end.has_ended for end in self._ends) or not all(e.transport.can_write_eof() for e in self._ends):
            self.close()
            return False
        return True

    def close(self) -> None:
        """End both connections after what is still buffered."""
        for end in self._ends:
            end.transport.close()

    def abort(self) -> None:
        """End both connections now."""
        for end in self._ends:
            end.transport.abort()

    def tick(self, now: float) -> None:
        """End a tunnel that is idle too long, or outstays its web server's drain."""
        options = self._relay.options
        if now - self.last_byte_at >= options.tunnel_idle_s:
            self.abort()
        if not self.state.draining:
            self.draining_since = None
        elif self.draining_since is None:
            self.draining_since = now
        elif now - self.draining_since >= options.tunnel_drain_s:
            self.abort()


class _TunnelEnd(asyncio.Protocol):
    """What one of the two connections reports goes to the other."""

    __slots__ = ("_other", "_tunnel", "has_ended", "transport")

    def __init__(self, tunnel: Tunnel, transport: asyncio.Transport, other: asyncio.Transport) -> None:
        self._tunnel = tunnel
        self.transport = transport
        self._other = other
        self.has_ended = False

    def data_received(self, data: bytes) -> None:
        self._tunnel.passed()
        if not self._other.is_closing():
            self._other.write(data)

    def pause_writing(self) -> None:
        if not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if not self._other.is_closing():
            self._other.resume_reading()

    def eof_received(self) -> bool:
        self.has_ended = True
        if not self._tunnel.eof():
            return False
        self._other.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._tunnel.ended()
