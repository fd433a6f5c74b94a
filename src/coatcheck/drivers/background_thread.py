"""The background thread of sessions for threads: an event loop, and how other threads and loops wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from coatcheck.drivers.asked_in_threads import LONGEST_WAIT_S
from coatcheck.errors import CoatcheckError, SessionUnavailable, UnavailableReason

T = TypeVar("T")

STOP_S: Final = 5.0
"""How long :meth:`BackgroundThread.stop` waits for the thread."""
MAX_WAITING: Final = 10_000
"""Threads that wait for session servers at once; one more is refused."""


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


class _Call:
    """A coroutine that a thread waits for."""

    __slots__ = ("_answered", "_coroutine", "_task", "error", "result")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None
        self._answered = threading.Lock()
        self._answered.acquire()
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """On the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self.result = await self._coroutine
        except asyncio.CancelledError:
            self.fail()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.error = error
        self._release()

    def cancel(self) -> None:
        """On the event loop: nobody waits any more."""
        if self._task is not None:
            self._task.cancel()

    def fail(self) -> None:
        self.error = SessionUnavailable(UnavailableReason.STOPPING)
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(RuntimeError):  # answered already
            self._answered.release()

    def wait(self, timeout_s: float) -> bool:
        return self._answered.acquire(timeout=timeout_s)


class _AwaitedCall(_Call):
    """A coroutine that another event loop waits for."""

    __slots__ = ("_loop", "_over")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__(coroutine)
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()

    def _release(self) -> None:
        super()._release()
        with contextlib.suppress(RuntimeError):  # that loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._over.set)

    async def until_answered(self, timeout_s: float) -> bool:
        """Whether it was answered in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        return self._over.is_set()


class BackgroundThread:
    """The background thread of one process. ``lock`` is held by whoever looks at or changes what is hosted here."""

    def __init__(self, name: str) -> None:
        self.lock = threading.RLock()
        self.loop = asyncio.SelectorEventLoop(_GivingSelector(self.lock))
        self._calls: set[_Call] = set()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"coatcheck {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        loop = self.loop
        with self.lock:
            asyncio.set_event_loop(loop)
            try:
                loop.run_forever()
                loop.run_until_complete(_cancel_all())
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                self._over = True
                loop.close()
                for call in list(self._calls):
                    call.fail()

    def run(self, coroutine: Coroutine[Any, Any, T], *, is_last: bool = False) -> T:
        """Wait for a coroutine in the calling thread, at most :data:`LONGEST_WAIT_S`; ``is_last``: never refused."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            coroutine.close()
            raise CoatcheckError("sessions cannot be waited for inside an observer: it is called while they are held")
        if len(self._calls) >= MAX_WAITING and not is_last:
            coroutine.close()
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        call = _Call(coroutine)
        self._calls.add(call)
        try:
            self._schedule(call)
            if not call.wait(LONGEST_WAIT_S):
                self._abandon(call)
                raise SessionUnavailable(UnavailableReason.TIMED_OUT)
        except (KeyboardInterrupt, SystemExit):
            self._abandon(call)
            raise
        finally:
            self._calls.discard(call)
        result: T = _result_of(call)
        return result

    async def run_awaited(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The same for a coroutine of another event loop, which goes on meanwhile."""
        if len(self._calls) >= MAX_WAITING:
            coroutine.close()
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        call = _AwaitedCall(coroutine)
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
        result: T = _result_of(call)
        return result

    def _schedule(self, call: _Call) -> None:
        try:
            self.loop.call_soon_threadsafe(call.start)
        except RuntimeError:  # it was closed
            call.fail()
        if self._over:
            call.fail()

    def _abandon(self, call: _Call) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call.cancel)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_S)


def _result_of(call: _Call) -> Any:
    if call.error is not None:
        raise call.error
    return call.result


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
