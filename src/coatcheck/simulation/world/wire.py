"""The wire between hosts: latency, bandwidth, loss, cuts; what a connection carries stays in order."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any, Protocol

from coatcheck.simulation.schedule import Schedule

Link = tuple[str, str]
"""From one host to another, by name."""


class End(Protocol):
    """One end of a connection, as the wire sees it."""

    host: str
    peer: Any
    is_silent: bool
    """Nothing that it sends arrives any more, and nobody is told: a middle box has forgotten the connection."""
    clear_at: float
    """When the last thing that it sent arrives: the next one comes later."""
    held: list[tuple[str, bytes]]
    """What it sent into a cut: sent again when that has healed."""

    def take(self, what: str, piece: bytes) -> None:
        """Something has arrived."""
        ...


class Wire:
    """Carries what connections send. All chances are per segment; times are seconds."""

    LATENCY_S = 0.001
    LATE_S = 2.5
    """A late segment arrives up to so much later, and all behind it: long after a caller has given up."""
    RESEND_S = 0.4
    """What a healed link held back arrives up to so much later: when the sender tries again."""
    LOST_S = 0.8
    """A segment that was lost and sent again arrives up to so much later."""

    def __init__(self, schedule: Schedule, dice: Random) -> None:
        self._schedule = schedule
        self._random = dice.random
        self.loss = 0.0
        """A lost segment is sent again, or (every other one) resets its connection."""
        self.fragmentation = 0.0
        self.lateness = 0.0
        self.cut: dict[Link, int] = {}
        """How many faults cut a link."""
        self.bytes_per_s: dict[Link, float] = {}
        """Slow links."""
        self._holding: dict[End, None] = {}

    def is_cut(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self.cut

    def latency_s(self) -> float:
        """One way, in calm weather."""
        return self.LATENCY_S * (0.2 + 2.0 * self._random())

    def send(self, end: End, what: str, piece: bytes = b"") -> None:
        """Bring something to the other end, behind all that was sent before."""
        delay_s = self.latency_s()
        if what == "data":
            random = self._random
            if self.fragmentation and len(piece) > 1 and random() < self.fragmentation:
                at = 1 + int(random() * (len(piece) - 1))
                self._carry(end, what, piece[:at], delay_s)
                piece = piece[at:]
                delay_s += self.latency_s()
            if self.lateness and random() < self.lateness:
                delay_s += self.LATE_S * random()
            if self.loss and random() < self.loss:
                if random() < 0.5:
                    self.reset(end)
                    return
                delay_s += 0.2 + (self.LOST_S - 0.2) * random()
        self._carry(end, what, piece, delay_s)

    def _carry(self, end: End, what: str, piece: bytes, delay_s: float) -> None:
        if self.bytes_per_s and piece:
            speed = self.bytes_per_s.get((end.host, end.peer.host))
            delay_s += len(piece) / speed if speed else 0.0
        now = self._schedule.now
        at = max(now + delay_s, end.clear_at + 1e-7)
        end.clear_at = at
        self._schedule.at(at, self._arrive, end, what, piece)

    def _arrive(self, end: End, what: str, piece: bytes) -> None:
        if end.is_silent:
            return
        if end.held or (self.cut and self.is_cut(end.host, end.peer.host)):
            if what != "reset":  # a reset is sent once
                end.held.append((what, piece))
                self._holding[end] = None
            return
        end.peer.take(what, piece)

    def reset(self, end: End) -> None:
        """Break a connection under both ends; each finds out in its own time. Nothing more arrives: no holes."""
        for one in (end, end.peer):
            one.is_silent = True
            self._schedule.after(self.latency_s(), one.take, "reset", b"")

    # -- cuts --------------------------------------------------------------------------------------

    def sever(self, links: Iterable[Link]) -> None:
        """Carry nothing there until as often mended."""
        for link in links:
            self.cut[link] = self.cut.get(link, 0) + 1

    def mend(self, links: Iterable[Link]) -> None:
        for link in links:
            self.cut[link] -= 1
            if not self.cut[link]:
                del self.cut[link]
        for end in list(self._holding):
            if not self.is_cut(end.host, end.peer.host):
                del self._holding[end]
                self._schedule.after(self.RESEND_S * self._random(), self._send_again, end)

    def _send_again(self, end: End) -> None:
        if self.is_cut(end.host, end.peer.host):
            self._holding[end] = None
            return
        held, end.held = end.held, []
        for what, piece in held:
            end.peer.take(what, piece)
