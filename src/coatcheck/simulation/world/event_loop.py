"""asyncio's own event loop on virtual time: only the selector and the clock below it are simulated."""

from __future__ import annotations

import asyncio
import heapq
import ipaddress
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

from coatcheck.simulation.world.sockets import Kernel

NOW = float("-inf")
RESOLUTION_S = 1e-9
MANY_TIMERS = 100
"""Cancelled timers that wait for asyncio to tidy them up."""


class Readiness(selectors.BaseSelector):
    """The selector of a machine: says which of its sockets are ready, and never waits."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._kernel.hot[fd] = None
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[fileobj if isinstance(fileobj, int) else fileobj.fileno()]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        hot = self._kernel.hot
        if not hot:
            return []
        found: list[tuple[selectors.SelectorKey, int]] = []
        for fd in list(hot):
            if ready := self._ready(fd):
                found.append((self._keys[fd], ready))
            else:
                del hot[fd]
        return found

    def _ready(self, fd: int) -> int:
        key, sock = self._keys.get(fd), self._kernel.sockets.get(fd)
        if key is None or sock is None:
            return 0
        ready = selectors.EVENT_READ if key.events & selectors.EVENT_READ and sock.is_readable else 0
        if key.events & selectors.EVENT_WRITE and sock.is_writable:
            ready |= selectors.EVENT_WRITE
        return ready

    def has_something(self) -> bool:
        """Whether the next :meth:`select` will answer anything."""
        hot = self._kernel.hot
        while hot:
            fd = next(iter(hot))
            if self._ready(fd):
                return True
            del hot[fd]
        return False

    def close(self) -> None:
        self._keys.clear()


class SimulatedLoop(asyncio.SelectorEventLoop):
    """The event loop of one run of one machine.

    ``complain`` gets what nobody has caught: a text, and the exception if there is one.
    """

    def __init__(
        self, kernel: Kernel, monotonic: Callable[[], float], complain: Callable[[str, BaseException | None], None]
    ) -> None:
        self.time = monotonic  # type: ignore[method-assign]
        self._complain = complain
        self.is_abandoned = False
        """Whether its process is gone: what is begun now never runs."""
        self._kernel = kernel
        self.readiness = Readiness(kernel)
        super().__init__(self.readiness)
        self._clock_resolution = RESOLUTION_S
        self.set_debug(False)

    def next_due(self) -> float | None:
        """When the next turn is due on this loop's clock; minus infinity: now; ``None``: when something arrives."""
        loop: Any = self
        if loop._ready or (self._kernel.hot and self.readiness.has_something()):
            return NOW
        timers = loop._scheduled
        while timers and timers[0]._cancelled:
            self._drop_timer()
        return timers[0]._when if timers else None

    def run_turn(self) -> None:
        """One iteration, as asyncio's: what has arrived, the timers that are due, and what was ready before.

        It is asyncio's ``_run_once`` without what a loop that never waits and is never debugged has no use for: half of
        a history is timers that are due, find all well, and wait again.
        """
        loop: Any = self
        if loop._timer_cancelled_count > MANY_TIMERS:
            loop._run_once()  # tidies up, too
            return
        if self._kernel.hot:
            loop._process_events(self.readiness.select())
        ready, timers = loop._ready, loop._scheduled
        end = self.time() + RESOLUTION_S
        while timers and timers[0]._when < end:
            timer = self._drop_timer()
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def _drop_timer(self) -> Any:
        loop: Any = self
        timer = heapq.heappop(loop._scheduled)
        timer._scheduled = False
        if timer._cancelled:
            loop._timer_cancelled_count -= 1
        return timer

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **named)
        if self.is_abandoned:
            coro.close()
        return task

    # -- what a loop does with the machine around it -------------------------------------------------

    def _make_self_pipe(self) -> None:
        """Nobody wakes this loop from another thread."""
        self._ssock = self._csock = None

    def _close_self_pipe(self) -> None:
        """There is none."""

    def _write_to_self(self) -> None:
        """There is none."""

    def _check_closed(self) -> None:
        """What is left of a process that was killed may still be tidied up: it calls into the void."""

    def _check_running(self) -> None:
        raise RuntimeError("the world runs this loop")

    def call_exception_handler(self, context: Any) -> None:
        self._complain(str(context.get("message")), context.get("exception"))

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(f"a simulated machine has no threads: {func!r}")

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        ipaddress.ip_address(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
