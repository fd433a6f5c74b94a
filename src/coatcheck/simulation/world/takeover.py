"""While a world runs, the process's clocks, randomness and sockets are the world's: nothing can go around it."""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, Protocol


class SimulatedClocks(Protocol):
    """What the machine whose turn it is has for clocks and sockets."""

    kernel: Any
    generators: list[Any]

    def monotonic(self) -> float:
        """Seconds since it started; they never go back."""
        ...

    def wall_ns(self) -> int:
        """Unix nanoseconds, right or wrong."""
        ...


class Turn:
    """Whose turn it is; ``None``: nobody's, and the clocks stand at :attr:`idle`."""

    def __init__(self) -> None:
        self.machine: SimulatedClocks | None = None
        self.idle: SimulatedClocks | None = None

    def clocks(self) -> SimulatedClocks:
        clocks = self.machine or self.idle
        assert clocks is not None, "no world is running"
        return clocks


turn = Turn()


def _monotonic() -> float:
    return turn.clocks().monotonic()


def _monotonic_ns() -> int:
    return round(turn.clocks().monotonic() * 1e9)


def _time() -> float:
    return turn.clocks().wall_ns() / 1e9


def _time_ns() -> int:
    return turn.clocks().wall_ns()


def _clock_gettime(clock: int) -> float:
    return _time() if clock == time.CLOCK_REALTIME else _monotonic()


_CLOCKS: dict[str, Callable[..., Any]] = {
    "monotonic": _monotonic,
    "monotonic_ns": _monotonic_ns,
    "perf_counter": _monotonic,
    "time": _time,
    "time_ns": _time_ns,
    "clock_gettime": _clock_gettime,
}


def _no_sleep(seconds: float) -> None:
    raise RuntimeError("time.sleep() stops a whole simulated world; await asyncio.sleep()")


@contextmanager
def taken_over(idle: SimulatedClocks, sockets: type, poll: type, dice: Random) -> Iterator[None]:
    """For as long as the block runs: ``time``, ``os.urandom``, the shared dice of ``random``, ``socket.socket`` and
    ``select.poll``.

    ``idle``: the clocks while no machine has its turn; ``sockets``, ``poll``: the classes that are simulated.
    What bound one of these functions at its import (a log that is kept short, say) keeps the real one: it must not
    decide anything.
    Raises ``RuntimeError`` where a world runs already.
    """
    if turn.idle is not None:
        raise RuntimeError("a world is running already")
    with ExitStack() as undo:
        for name, fake in (*_CLOCKS.items(), ("sleep", _no_sleep)):
            _replace(undo, time, name, fake)
        _replace(undo, os, "urandom", dice.randbytes)
        _replace(undo, socket, "socket", sockets)
        _replace(undo, select, "poll", poll)
        undo.callback(random.setstate, random.getstate())
        random.seed(dice.random())
        undo.callback(sys.set_asyncgen_hooks, *sys.get_asyncgen_hooks())
        sys.set_asyncgen_hooks(firstiter=_begun, finalizer=_left_alone)
        undo.callback(asyncio._set_running_loop, asyncio._get_running_loop())
        asyncio._set_running_loop(None)
        turn.machine, turn.idle = None, idle
        try:
            yield
        finally:
            turn.machine = turn.idle = None


def _begun(generator: Any) -> None:
    turn.clocks().generators.append(generator)


def _left_alone(generator: Any) -> None:
    """A process that was killed finishes nothing."""


def _replace(undo: ExitStack, owner: Any, name: str, fake: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, fake)
