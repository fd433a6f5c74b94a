"""Simulated time: what happens when, in one thread and in one order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Act = Callable[..., Any]

EPOCH_MS = 1_700_000_000_000
"""What every clock of the farm shows at the beginning, before its own skew: Unix ms."""


class Schedule:
    """A queue of events by time; events of one moment happen in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Act, tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay_s: float, act: Act, *args: Any) -> None:
        """Call ``act`` in ``delay_s`` simulated seconds."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, act, args))

    def at(self, moment: float, act: Act, *args: Any) -> None:
        """Call ``act`` at a moment; one that has passed is now."""
        self._count += 1
        heapq.heappush(self._heap, (max(moment, self.now), self._count, act, args))

    def step(self, end: float) -> bool:
        """Let the next event happen, if there is one up to ``end``."""
        heap = self._heap
        if not heap or heap[0][0] > end:
            self.now = end
            return False
        self.now, _, act, args = heapq.heappop(heap)
        self.steps += 1
        act(*args)
        return True

    def run(self, seconds: float, stop: Callable[[], object] = lambda: None) -> bool:
        """Let so much time pass; answers early, and ``True``, when ``stop`` says so."""
        end = self.now + seconds
        while self.step(end):
            if stop():
                return True
        return bool(stop())


class Process:
    """Something that can be killed, and frozen: then nothing happens for a while, and everything late."""

    MAX_BACKLOG = 100_000
    alive = True
    frozen = False

    def __init__(self, name: str, schedule: Schedule) -> None:
        self.name = name
        self.schedule = schedule
        self._backlog: list[tuple[Act, tuple[Any, ...]]] = []

    def after(self, delay_s: float, act: Act, *args: Any) -> None:
        """Call ``act`` in ``delay_s`` seconds, unless this process is dead by then."""
        self.schedule.after(delay_s, self.deliver, act, *args)

    def deliver(self, act: Act, *args: Any) -> None:
        if not self.alive:
            return
        if self.frozen:
            if len(self._backlog) < self.MAX_BACKLOG:
                self._backlog.append((act, args))
            return
        act(*args)

    def kill(self) -> None:
        self.alive = False
        self._backlog.clear()

    def freeze(self) -> None:
        self.frozen = self.alive

    def thaw(self) -> None:
        """Everything that waited happens now, in order."""
        self.frozen = False
        waiting, self._backlog = self._in_order(self._backlog), []
        for act, args in waiting:
            self.after(0.0, act, *args)

    def _in_order(self, waiting: list[tuple[Act, tuple[Any, ...]]]) -> list[tuple[Act, tuple[Any, ...]]]:
        return waiting
