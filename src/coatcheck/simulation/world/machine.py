"""One run of one process on a host of its own: an event loop, clocks, sockets. It can be frozen and killed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from math import ceil
from random import Random
from typing import Any

from coatcheck.simulation.schedule import EPOCH_MS, Schedule
from coatcheck.simulation.world.event_loop import SimulatedLoop
from coatcheck.simulation.world.sockets import Hosts, Kernel
from coatcheck.simulation.world.takeover import turn

TURN_S = 2e-5
"""What a turn of an event loop takes: whoever is ready again at once runs so much later."""


WAKE_S = 5e-6
"""From the arrival of something until a process that waits for it runs; what arrives meanwhile is read at once."""
FINE_S = 0.0001
COARSE_S = 0.0125
BUSY_S = 0.05
"""Timers are late by up to so much, as on a busy host; coarse ones are due together, and cost less to simulate."""


class IdleClocks:
    """The clocks of the world itself."""

    kernel: Any = None

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.generators: list[Any] = []

    def monotonic(self) -> float:
        return self._schedule.now

    def wall_ns(self) -> int:
        return EPOCH_MS * 1_000_000 + round(self._schedule.now * 1e9)


class Machine:
    """``complain(text, error)`` gets what nothing in the process has caught. ``skew_ms``: how wrong its clock is."""

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        hosts: Hosts,
        complain: Callable[[str, BaseException | None], None],
        uptime_s: float = 0.0,
        grain_s: float = FINE_S,
    ) -> None:
        self.name = name
        self.address = hosts.address_of(name)
        self.schedule = schedule
        self.alive = True
        self.frozen = False
        self.holds = 0
        """How many faults hold it frozen."""
        self.skew_ms = 0.0
        self._uptime_s = uptime_s
        self._grain_s = grain_s
        self._complain = complain
        self._hosts = hosts
        self.kernel = Kernel(name, hosts, self.wake)
        self.loop = SimulatedLoop(self.kernel, self.monotonic, self._uncaught)
        self.generators: list[Any] = []
        """The asynchronous generators that it has begun: they end with it, and finish nothing."""
        self._due: float | None = None
        self._plans = 0
        self._in_turn = False

    # -- clocks ------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.schedule.now + self._uptime_s

    def wall_ns(self) -> int:
        return round((EPOCH_MS + self.schedule.now * 1000 + self.skew_ms) * 1e6)

    # -- turns -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to do."""
        if not self._in_turn:
            self._plan(self.schedule.now + WAKE_S)

    def call(self, act: Callable[..., Any], *args: Any) -> Any:
        """Do something in this process now, outside of its event loop's turns; ``None`` if it is dead."""
        if not self.alive:
            return None
        answer = self._as_current(act, *args)
        if not self._in_turn:
            self._plan_next()
        return answer

    def start(self, main: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        """A task of this process; of one that is dead, nothing."""
        if not self.alive:
            main.close()
        task: asyncio.Task[Any] = self.call(self.loop.create_task, main)
        return task

    def _plan(self, at: float) -> None:
        if self._due is not None and self._due <= at:
            return
        self._due = at
        self._plans += 1
        self.schedule.at(at, self._turn, self._plans)

    def _plan_next(self) -> None:
        due = self.loop.next_due()
        if due is None:
            return
        soonest = self.schedule.now + TURN_S
        if due > soonest + self._uptime_s:
            grain_s = self._grain_s
            soonest = ceil((due - self._uptime_s) / grain_s) * grain_s
        self._plan(soonest)

    def _turn(self, plan: int) -> None:
        if plan != self._plans:
            return
        self._due = None
        if self.frozen or not self.alive:
            return
        self._in_turn = True
        turn.machine = self
        asyncio._set_running_loop(self.loop)  # until the next turn, of whomever: nobody asks in between
        try:
            self.loop.run_turn()
        finally:
            self._in_turn = False
            turn.machine = None
        self._plan_next()

    def _as_current(self, act: Callable[..., Any], *args: Any) -> Any:
        before, turn.machine = turn.machine, self
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self.loop)
        try:
            return act(*args)
        finally:
            asyncio._set_running_loop(running)
            turn.machine = before

    def _uncaught(self, text: str, error: BaseException | None) -> None:
        if self.alive:
            self._complain(text, error)

    # -- what can happen to a process ----------------------------------------------------------------

    def freeze(self) -> None:
        """It does not run; what arrives waits in its sockets."""
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        self.wake()

    def kill(self, silently: bool = False) -> None:
        """It is gone, and its kernel ends its connections; with the power (``silently``) nobody is told."""
        if not self.alive:
            return
        self.alive = False
        self.loop.is_abandoned = True
        self._as_current(self.kernel.end, silently)
        self._as_current(self._drop_tasks)
        loop: Any = self.loop
        for transport in list(loop._transports.values()):
            transport._sock = None  # it is closed, and nobody is there to be warned of it
        loop.close()

    def _drop_tasks(self) -> None:
        """What was under way is gone now, not when its memory is collected in the middle of something else."""
        for task in asyncio.all_tasks(self.loop):
            coroutine: Any = task.get_coro()
            with contextlib.suppress(Exception):  # nobody is left to whom it could matter
                coroutine.close()


def uptime_of(dice: Random) -> float:
    """How long a host has run when a history begins: the clocks of two hosts never agree."""
    return dice.random() * 1e6
