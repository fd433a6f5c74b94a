"""The network of the simulated farm: delay, loss, duplication, reordering and partition."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from coatcheck.simulation.schedule import Act, Process
from coatcheck.simulation.world.wire import Link


class Network:
    """Carries messages. Each has a latency of its own, so that they overtake one another."""

    LATENCY_S = 0.001
    LATE_S = 2.5
    """A delayed message arrives up to so much later: long after whoever waits for it has given up."""

    def __init__(self, rng: Random) -> None:
        self._random = rng.random
        self.loss = 0.0
        self.duplication = 0.0
        self.lateness = 0.0
        self.cut: set[Link] = set()
        """Directed links, by the names of both ends, that carry nothing."""

    def send(self, sender: str, to: Process, act: Act, *args: Any) -> None:
        """Call ``act`` at ``to``: once, later, twice, or never."""
        random = self._random
        if self.cut and (sender, to.name) in self.cut:
            return
        delay = self.LATENCY_S * (0.2 + 2.0 * random())
        if self.lateness and random() < self.lateness:
            delay += self.LATE_S * random()
        if self.duplication and random() < self.duplication:
            to.after(delay + self.LATE_S * random() ** 3, act, *args)
        if self.loss and random() < self.loss:
            return
        to.after(delay, act, *args)

    def transit_s(self, sender: str, to: str) -> float | None:
        """How long a piece of a connection takes; ``None``: it never comes. Never twice (TCP)."""
        if self.cut and (sender, to) in self.cut:
            return None
        delay = self.LATENCY_S * (0.2 + 2.0 * self._random())
        if self.lateness and self._random() < self.lateness:
            delay += self.LATE_S * self._random()
        return None if self.loss and self._random() < self.loss else delay

    def carry(self, to: Process, act: Act, *args: Any) -> None:
        """A request to a web server or its answer: perhaps late, perhaps lost, never twice (TCP)."""
        delay = self.LATENCY_S * (0.2 + 2.0 * self._random())
        if self.lateness and self._random() < self.lateness:
            delay += self.LATE_S * self._random()
        if self.loss and self._random() < self.loss:
            return
        to.after(delay, act, *args)

    def sever(self, links: Iterable[Link]) -> None:
        self.cut.update(links)

    def mend(self, links: Iterable[Link]) -> None:
        """However many faults cut them."""
        self.cut.difference_update(links)

    def heal(self) -> None:
        self.loss = self.duplication = self.lateness = 0.0
        self.cut.clear()
