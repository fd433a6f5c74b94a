"""The background thread of a process whose requests run in threads: an event loop, a lock, and who waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import threading
import time
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

from coatcheck.drivers.asked_in_threads import LONGEST_WAIT_S
from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.drivers.begun import Begun
from coatcheck.drivers.calls import AwaitedCall, CoroutineCall, ThreadCall
from coatcheck.drivers.shared_reading import SLICE_MS, SharedReading
from coatcheck.drivers.visit import Visit
from coatcheck.errors import CoatcheckError, SessionUnavailable, UnavailableReason
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.stores.connection import Connection, SharedLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STOP_S: Final = 5.0
"""How long :meth:`BackgroundThread.stop` waits for the thread."""
MAX_WAITING: Final = 10_000
"""Threads that wait for session servers at once; one more is refused."""

_PATCHERS: Final = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)
"""Who replaces threads by greenlets: the module, its function that says so, and what is asked for."""

_HELD: Final = "sessions cannot be waited for inside an observer: it is called while they are held"


class _GivingSelector(selectors.DefaultSelector):
    """Gives a lock away while it waits."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__()
        self._lock = lock

    def select(self, timeout: float | None = None) -> Any:
        self._lock.release()
        try:
            return super().select(timeout)
        finally:
            self._lock.acquire()


class _SharedLoop(asyncio.SelectorEventLoop, SharedLoop):
    """May be asked for something soon or later by every thread that holds its lock, and wakes up for it."""

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if _get_running_loop() is self:
            return super().call_soon(callback, *args, context=context)
        return self.call_soon_threadsafe(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if _get_running_loop() is self:
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self.call_soon_threadsafe(self._begin_timer, timer, partial(callback, *args), context=context)
        return timer

    def _begin_timer(self, timer: asyncio.TimerHandle, callback: Callable[[], object]) -> None:
        super().call_at(timer.when(), lambda: None if timer.cancelled() else callback())


class BackgroundThread:
    """The background thread of one process. ``lock`` is held by whoever looks at or changes what is hosted here."""

    def __init__(self, name: str, connections: Callable[[], Iterable[Connection]]) -> None:
        self.lock = threading.RLock()
        self.loop = _SharedLoop(_GivingSelector(self.lock))
        self.reading = SharedReading(self.loop, connections)
        self._reader: ThreadCall | None = None
        """Whose thread reads for all."""
        self._readers_to_be: deque[Begun] = deque(maxlen=MAX_WAITING)
        self._calls: set[ThreadCall] = set()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"coatcheck {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        loop = self.loop
        with self.lock:
            asyncio.set_event_loop(loop)
            try:
                loop.run_forever()
                for call in list(self._calls):
                    call.cancel()
                loop.run_until_complete(_cancel_all())
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                self._over = True
                loop.close()
                for call in list(self._calls):
                    call.fail()

    def begin(self, work: Flow[Any] | Exclusive, driver: AsyncioDriver, visit: Visit) -> Begun:
        """Under the lock: begin a flow that the calling thread is going to :meth:`wait` for, without the lock."""
        if self._over:
            raise SessionUnavailable(UnavailableReason.STOPPING)
        if len(self._calls) >= MAX_WAITING:
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        call = Begun(driver, visit)
        self._calls.add(call)
        call.begin(work)
        if not call.is_over:
            if not call.waits_for_stores:
                self._read_on_the_loop()
            elif self._reader is not None:
                self._readers_to_be.append(call)
            elif self.reading.lend():
                self._reader = call
        return call

    def wait(self, call: ThreadCall) -> Any:
        """Wait for a call in the calling thread, at most :data:`LONGEST_WAIT_S`: its result, or what it raised."""
        try:
            if not call.is_over:
                self._wait(call)
        except BaseException:
            self._abandon(call)
            raise
        finally:
            self._calls.discard(call)
        return call.outcome()

    def _wait(self, call: ThreadCall) -> None:
        if self.lock._is_owned():  # type: ignore[attr-defined]
            raise CoatcheckError(_HELD)
        ends_at = time.monotonic() + LONGEST_WAIT_S
        while not call.is_over:
            if isinstance(call, Begun) and self._reader is call:
                self._read_for(call, ends_at)
            elif not call.wait(max(0.0, ends_at - time.monotonic())):
                raise SessionUnavailable(UnavailableReason.TIMED_OUT)

    def _read_for(self, call: Begun, ends_at: float) -> None:
        """Read what arrives, for all threads, until the calling thread has its answer, or waits for something else."""
        reading, lock = self.reading, self.lock
        while True:
            ready = reading.wait(SLICE_MS)
            with lock:
                if ready:
                    reading.read(ready)
                if call.is_over or not call.waits_for_stores or (not ready and time.monotonic() >= ends_at):
                    self._next_reader()
                    if not call.is_over:
                        self._read_on_the_loop()
                    return

    def _next_reader(self) -> None:
        """Another thread that still waits for session servers reads from now on, if there is one."""
        self._reader = None
        waiting = self._readers_to_be
        while waiting:
            call = waiting.popleft()
            if call.is_over or not call.waits_for_stores or call not in self._calls:
                continue
            if self.reading.lend():
                self._reader = call
                call.wake()
            return

    def _read_on_the_loop(self) -> None:
        """A task of the event loop may wait for session servers."""
        if self._reader is None:
            with contextlib.suppress(RuntimeError):  # it was closed
                self.loop.call_soon_threadsafe(self.reading.give_back)

    def run(self, coroutine: Coroutine[Any, Any, T], *, is_last: bool = False) -> T:
        """The same for a coroutine; ``is_last``: never refused."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            coroutine.close()
            raise CoatcheckError(_HELD)
        if len(self._calls) >= MAX_WAITING and not is_last:
            coroutine.close()
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        call = CoroutineCall(coroutine)
        self._calls.add(call)
        self._schedule(call)
        result: T = self.wait(call)
        return result

    async def run_awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same for a coroutine of another event loop, which goes on meanwhile."""
        if len(self._calls) >= MAX_WAITING:
            coroutine.close()
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        call = AwaitedCall(coroutine)
        self._calls.add(call)
        try:
            self._schedule(call)
            if not await call.until_answered(LONGEST_WAIT_S):
                self._abandon(call)
                raise SessionUnavailable(UnavailableReason.TIMED_OUT)
        except asyncio.CancelledError:
            self._abandon(call)
            raise
        finally:
            self._calls.discard(call)
        result: T = call.outcome()
        return result

    def _schedule(self, call: CoroutineCall) -> None:
        try:
            self.loop.call_soon_threadsafe(self._start, call)
        except RuntimeError:  # it was closed
            call.fail()
        if self._over:
            call.fail()

    def _start(self, call: CoroutineCall) -> None:
        call.start()
        if self._reader is None:
            self.reading.give_back()

    def _abandon(self, call: ThreadCall) -> None:
        """Nobody waits for it any more."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call.cancel)
        if self._reader is call:
            with self.lock:
                self._next_reader()

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_S)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def refuse_greenlets() -> None:
    """Patched threads are no threads: the background one would never run while a greenlet computes."""
    for module, question, what in _PATCHERS:
        is_patched = getattr(sys.modules.get(module), question, None)
        if is_patched is not None and is_patched(what):
            raise CoatcheckError(f"sessions for threads need real ones, and {module} has replaced them")
