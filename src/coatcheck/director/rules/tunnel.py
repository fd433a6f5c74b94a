"""Two connections joined after an upgrade: bytes pass both ways, each way with back-pressure and its own end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coatcheck.director.rules.actions import AtEnd, ToClient, ToServer, TunnelAction, TunnelOrder, TunnelSide
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.traffic import Traffic


class Tunnel:
    """A WebSocket between a client and a web server (RFC 6455, 4.1): events in, :attr:`actions` out.

    It counts as a request in flight until one of its ends is lost, and as a WebSocket until both are.
    """

    __slots__ = (
        "_closes_at",
        "_draining_since",
        "_ended",
        "_guests",
        "_last_byte_at",
        "_lost",
        "_traffic",
        "actions",
        "can_half_close",
        "server",
    )  # fmt: skip

    def __init__(self, traffic: Traffic, server: ServerState, guests: Sequence[Guest], *, can_half_close: bool) -> None:
        self._traffic = traffic
        self.server = server
        self._guests = guests
        self.can_half_close = can_half_close
        self._ended: set[TunnelSide] = set()
        self._lost: set[TunnelSide] = set()
        self._closes_at = _NEVER
        self._last_byte_at = traffic.now
        self._draining_since: float | None = None
        self.actions: list[TunnelAction] = []

    def opened(self, early: bytes, *, client_full: bool, server_full: bool) -> None:
        """Both connections are ours now; ``early``: what the client sent before the upgrade was agreed.

        A side whose write buffer is full already says so no second time, hence the flags.
        """
        self._traffic.tunnels[self] = None
        for side, other_full in ((TunnelSide.CLIENT, server_full), (TunnelSide.SERVER, client_full)):
            self.actions.append(AtEnd(side, TunnelOrder.PAUSE if other_full else TunnelOrder.RESUME))
        if early:
            self.actions.append(ToServer(early))

    def came(self, side: TunnelSide, data: bytes) -> None:
        """Bytes came from one side."""
        self._last_byte_at = self._traffic.now
        self.actions.append(ToServer(data) if side is TunnelSide.CLIENT else ToClient(data))

    def full(self, side: TunnelSide) -> None:
        """One side takes no more for now."""
        self.actions.append(AtEnd(_OTHER[side], TunnelOrder.PAUSE))

    def ready(self, side: TunnelSide) -> None:
        """One side takes bytes again."""
        self.actions.append(AtEnd(_OTHER[side], TunnelOrder.RESUME))

    def ended(self, side: TunnelSide) -> None:
        """One side has no more to say; the other one may go on, where connections have halves (TLS has none)."""
        self._ended.add(side)
        if len(self._ended) == 2 or not self.can_half_close:
            self._both(TunnelOrder.CLOSE)
        else:
            self.actions.append(AtEnd(_OTHER[side], TunnelOrder.END))

    def lost(self, side: TunnelSide) -> None:
        """One connection is gone, so the other has nobody to talk to; it may take what is still buffered for it."""
        self._lost.add(side)
        if len(self._lost) == 1:
            self.server.in_flight -= 1
            self._closes_at = self._traffic.now + self._traffic.limits.linger_s
            self.actions.append(AtEnd(_OTHER[side], TunnelOrder.CLOSE))
            return
        del self._traffic.tunnels[self]
        for guest in self._guests:
            guest.leave()

    @property
    def is_over(self) -> bool:
        """Whether both connections are gone."""
        return len(self._lost) == 2

    def tick(self) -> None:
        """End a tunnel that is idle too long, outstays its web server's drain, or has lost one end for a while."""
        now, limits = self._traffic.now, self._traffic.limits
        if now - self._last_byte_at >= limits.websocket_timeout_s or now >= self._closes_at:
            self.abort()
        if not self.server.draining:
            self._draining_since = None
        elif self._draining_since is None:
            self._draining_since = now
        elif now - self._draining_since >= limits.tunnel_drain_s:
            self.abort()

    def server_died(self) -> None:
        """The process at its other end has ended."""
        self.abort()

    def abort(self) -> None:
        """End both connections now."""
        self._both(TunnelOrder.ABORT)

    def _both(self, order: TunnelOrder) -> None:
        self.actions += [AtEnd(TunnelSide.CLIENT, order), AtEnd(TunnelSide.SERVER, order)]


_NEVER: Final = float("inf")
_OTHER: Final = {TunnelSide.CLIENT: TunnelSide.SERVER, TunnelSide.SERVER: TunnelSide.CLIENT}
