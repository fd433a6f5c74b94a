"""Leases of responses that stream: each is extended before its deadline, behind the back of whoever reads the body.

A lease is extended when half of its time is over, whether anything is read or not, until the response ends, is
forgotten (nobody has it any more), or the pool's ``max_stream`` is over. One that cannot be extended is told
(``PoolEventKind.LEASE_NOT_EXTENDED``); whoever reads gets the rest of the answer all the same.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any, Final

from coatcheck.pool import AsyncTokenPool, PoolClosed, PoolError, StoreUnavailable, TokenPool
from coatcheck.pool.commands import Extend, Granted
from coatcheck.pool.events import PoolEventKind
from coatcheck.pool.flows import settle

EXTENDED_AFTER: Final = 0.5
"""Which part of a lease's time is over when it is extended."""
TRIED_AGAIN_AFTER: Final = 0.1
"""The same for the next try, where the store did not answer."""


class Streaming:
    """One lease of a response that streams. ``owner``: whoever lets it go unread forgets the response."""

    __slots__ = ("_generation", "_pool", "_told", "due", "ended", "fencing", "give_up_at", "held", "owner")

    def __init__(self, pool: Any, held: Any, owner: Any) -> None:
        self._pool = pool
        self._generation = pool.generation
        self._told = False
        self.held = held
        self.fencing: int = held.fencing
        self.owner = weakref.ref(owner)
        self.ended = False
        settings = pool.settings
        now = pool.clock()
        self.give_up_at: float = now + settings.max_stream_s
        self.due = now + (held.deadline - now) * EXTENDED_AFTER

    def goes_on(self) -> bool:
        """Whether it is still to be extended; a fork has its parent's leases in memory, which are not its own."""
        return not self.ended and self.owner() is not None and self._generation == self._pool.generation

    def may_extend(self) -> bool:
        """Whether there is time left for it; if not, that is told."""
        if self._pool.clock() < self.give_up_at:
            return True
        self._tell("max_stream is over")
        return False

    def extended(self, granted: Granted) -> None:
        if self.ended:  # given back while the store was asked
            self._pool.live.discard((self.held.user, self.fencing))
            return
        self.held.deadline = granted.deadline
        self.due = granted.deadline - self._pool.settings.policy.lease_s * (1 - EXTENDED_AFTER)

    def failed(self, error: PoolError) -> bool:
        """Take note that it could not be extended; whether to try again."""
        if self.ended or isinstance(error, PoolClosed):
            return False
        self._tell(type(error).__name__)
        self.due = self._pool.clock() + self._pool.settings.policy.lease_s * TRIED_AGAIN_AFTER
        return isinstance(error, StoreUnavailable) and self.due < self.held.deadline

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            detail = f"lease {self.fencing} of a response that streams: {why}"
            self._pool.report(PoolEventKind.LEASE_NOT_EXTENDED, self.held.user, detail)

    def command(self) -> Any:
        return settle(self.held.user, Extend(self.fencing), self.fencing)


class Streams:
    """The leases of responses that stream, for threads: one thread extends them, and ends when there are none."""

    def __init__(self, pool: TokenPool) -> None:
        self._pool = pool
        self._start_anew()

    def _start_anew(self) -> None:
        """Also after a fork, which has neither its parent's thread nor its leases."""
        self._generation = self._pool.generation
        # Each step at a dictionary is safe among threads.
        self._streaming: dict[int, Streaming] = {}
        self._starting = threading.RLock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, held: Any, owner: Any) -> None:
        """From now on extend the lease ``held``, until :meth:`end`, or until nobody has ``owner`` any more."""
        if not hasattr(held, "extend"):
            return  # a shared token is nobody's alone
        if self._generation != self._pool.generation:
            self._start_anew()
        with self._starting:
            self._streaming[id(held)] = Streaming(self._pool, held, owner)
            self._changed.set()  # it may be due before those that are there
            if self._thread is not None and self._thread.is_alive():
                return
            self._thread = thread = threading.Thread(target=self._work, name="coatcheck-pool-streams", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no thread to be had
                self._thread = None
                self._streaming.pop(id(held)).failed(PoolError(str(error)))

    def end(self, held: Any) -> None:
        """The lease is about to be given back."""
        streaming = self._streaming.pop(id(held), None)
        if streaming is not None:
            streaming.ended = True

    def _work(self) -> None:
        while True:
            self._changed.clear()
            for key, streaming in list(self._streaming.items()):
                if not self._go_on(streaming):
                    self._streaming.pop(key, None)
            now = self._pool.clock()
            dues = [streaming.due - now for streaming in list(self._streaming.values())]
            self._changed.wait(max(0.001, min([*dues, self._pool.settings.policy.lease_s * EXTENDED_AFTER / 2])))
            if not self._streaming:
                with self._starting:
                    if not self._streaming:
                        self._thread = None
                        return

    def _go_on(self, streaming: Streaming) -> bool:
        if not streaming.goes_on():
            return False
        if self._pool.clock() < streaming.due:
            return True
        if not streaming.may_extend():
            return False
        try:
            streaming.extended(self._pool.run(streaming.command()))
        except PoolError as error:
            return streaming.failed(error)
        return True


def streams_of(pool: TokenPool) -> Streams:
    """All adapters of one pool have one thread."""
    streams: Streams = vars(pool).setdefault("streams", Streams(pool))  # of two threads the first decides
    return streams


class AsyncStreams:
    """The same for asyncio: a timer for each response, and a task while the store is asked."""

    def __init__(self, pool: AsyncTokenPool) -> None:
        self._pool = pool
        self._streaming: dict[int, tuple[Streaming, asyncio.TimerHandle]] = {}

    def keep(self, held: Any, owner: Any) -> None:
        """See :meth:`Streams.keep`."""
        if hasattr(held, "extend"):
            self._plan(Streaming(self._pool, held, owner))

    def end(self, held: Any) -> None:
        """See :meth:`Streams.end`."""
        found = self._streaming.pop(id(held), None)
        if found is not None:
            streaming, timer = found
            streaming.ended = True
            timer.cancel()

    def _plan(self, streaming: Streaming) -> None:
        pause_s = max(0.001, streaming.due - self._pool.clock())
        timer = asyncio.get_running_loop().call_later(pause_s, self._start, streaming)
        self._streaming[id(streaming.held)] = streaming, timer

    def _start(self, streaming: Streaming) -> None:
        if streaming.goes_on() and streaming.may_extend():
            self._pool.spawn(self._extend(streaming))
        elif not streaming.ended:
            self._streaming.pop(id(streaming.held), None)

    async def _extend(self, streaming: Streaming) -> None:
        try:
            streaming.extended(await self._pool.run(streaming.command()))
            again = streaming.goes_on()
        except PoolError as error:
            again = streaming.failed(error)
        if again:
            self._plan(streaming)
        elif not streaming.ended:
            self._streaming.pop(id(streaming.held), None)
