"""Who reads what session servers answer, in a process whose requests run in threads: the event loop of the background
thread or, while threads write often, the thread that waits for an answer. So no answer has to go through two threads.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Final

from coatcheck.stores.connection import Connection

LOOK_S: Final = 0.01
"""While connections are lent the event loop looks so often whether something lies there that no thread has read."""
IDLE_LOOKS: Final = 20
"""After so many looks without a thread that waited for an answer, the event loop reads again."""
SLICE_MS: Final = 20
"""A thread that waits looks so often whether it has got its answer otherwise, such as by a time-out."""


class SharedReading:
    """The connections that are lent to threads. All but :attr:`wait` is called under the lock of the event loop.

    ``connections`` answers those that are up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Callable[[], Iterable[Connection]]) -> None:
        self._loop = loop
        self._connections = connections
        self._lent: dict[int, Connection] = {}
        self._is_stale = True
        """Whether other connections may be up than those that were."""
        self._looks = False
        self._was_read = False
        self._idle_looks = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._poll, self._glance = select.poll(), select.poll()
        """The same, for the thread that waits and for the event loop."""
        self.wait: Callable[[int], list[tuple[int, int]]] = self._poll.poll
        """Without the lock: wait so many milliseconds until something has arrived; what :meth:`read` takes."""

    def changed(self) -> None:
        """Some connection is up, or lost."""
        self._is_stale = True

    def lend(self) -> bool:
        """Whether the calling thread is to read, for itself and for all others; if so, it must :attr:`wait` now."""
        if self._is_stale:
            self._take()
        self._idle_looks = 0
        return bool(self._lent)

    def read(self, ready: list[tuple[int, int]]) -> None:
        """Bring what has arrived to whoever waits for it."""
        self._was_read = True
        for descriptor, _ in ready:
            connection = self._lent.get(descriptor)
            if connection is not None:
                connection.read(descriptor)
                if connection.lost:
                    self._forget(descriptor)

    def _take(self) -> None:
        """Some are new, or lost; what was lent and is up stays so."""
        self._is_stale = False
        self._lent = {}
        self._begin_anew()
        for connection in self._connections():
            descriptor = connection.lend()
            if descriptor is not None:
                self._lent[descriptor] = connection
                self._poll.register(descriptor, select.POLLIN)
                self._glance.register(descriptor, select.POLLIN)
        if self._lent and not self._looks:
            self._looks = True
            self._loop.call_soon_threadsafe(self._look)

    def give_back(self) -> None:
        """On the event loop, and while no thread waits: it reads again."""
        for connection in self._lent.values():
            connection.give_back()
        self._lent = {}
        self._is_stale = True

    def _forget(self, descriptor: int) -> None:
        del self._lent[descriptor]
        self._poll.unregister(descriptor)
        self._glance.unregister(descriptor)

    def _look(self) -> None:
        """On the event loop: read what no thread has read since the look before."""
        self._idle_looks += 1
        if self._idle_looks > IDLE_LOOKS or not self._lent:
            self._looks = False
            self.give_back()
            return
        if not self._was_read:
            self.read(self._glance.poll(0))
        self._was_read = False
        self._loop.call_later(LOOK_S, self._look)
