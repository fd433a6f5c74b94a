"""A world: one schedule, one wire, and the machines on it. The same seed gives the same history to the byte."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from coatcheck.simulation.schedule import Schedule
from coatcheck.simulation.world.machine import BUSY_S, COARSE_S, FINE_S, IdleClocks, Machine, uptime_of
from coatcheck.simulation.world.sockets import Hosts, SimulatedPoll, SimulatedSocket
from coatcheck.simulation.world.takeover import taken_over
from coatcheck.simulation.world.wire import Wire

Complain = Callable[[str, BaseException | None], None]
LOGS = ("coatcheck", "asyncio", "uvicorn")


class SimulatedWorld:
    """``complain(text, error)``: what no process has caught, and what is logged as an error."""

    def __init__(self, seed: object, complain: Complain) -> None:
        self.schedule = Schedule()
        self.run = self.schedule.run
        self._dice = Random(f"world {seed}")
        self.wire = Wire(self.schedule, Random(f"wire {seed}"))
        self.hosts = Hosts(self.wire)
        self.complain = complain
        self._machines: list[Machine] = []

    def machine(self, name: str, *, complain: Complain | None = None, same_clock: bool = False) -> Machine:
        """A process that has just started on a host of this name. ``same_clock``: its steady clock is the world's."""
        uptime_s = 0.0 if same_clock else uptime_of(self._dice)
        grain_s = self._dice.choice((BUSY_S, BUSY_S, COARSE_S, FINE_S))
        machine = Machine(name, self.schedule, self.hosts, complain or self.complain, uptime_s, grain_s)
        self.hosts.without_power.discard(name)
        self._machines.append(machine)
        return machine

    @contextmanager
    def running(self) -> Iterator[SimulatedWorld]:
        """Machines may run in this block; after it all of them are gone."""
        with (
            taken_over(IdleClocks(self.schedule), SimulatedSocket, SimulatedPoll, self._dice),
            _errors_to(lambda text, error: self.complain(text, error)),
        ):
            collects = gc.isenabled()
            gc.disable()  # what is collected calls back, and must do so at the same point of each history
            try:
                yield self
            finally:
                for machine in self._machines:
                    machine.kill(silently=True)
                if collects:
                    gc.enable()


class _ErrorHandler(logging.Handler):
    def __init__(self, complain: Complain) -> None:
        super().__init__(logging.ERROR)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        error: Any = record.exc_info[1] if record.exc_info else None
        self._complain(record.getMessage(), error)


@contextmanager
def _errors_to(complain: Complain) -> Iterator[None]:
    """What is logged as an error is told; the rest is for operators, and says nothing here."""
    handler = _ErrorHandler(complain)
    before = []
    for name in LOGS:
        logger = logging.getLogger(name)
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
