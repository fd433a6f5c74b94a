"""What threads and other event loops wait for, while it is done under the lock of a background thread's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

from coatcheck.errors import SessionUnavailable, UnavailableReason


class ThreadCall:
    """What a thread waits for: a result, or an error. The thread calls :meth:`wait` and :meth:`outcome`; all else is
    called under the lock."""

    __slots__ = ("_error", "_result", "_signal", "is_over")

    def __init__(self) -> None:
        self._signal = threading.Lock()
        self._signal.acquire()
        self._result: Any = None
        self._error: BaseException | None = None
        self.is_over = False

    def answer(self, result: Any, error: BaseException | None) -> None:
        """Take what it came to; only the first answer counts."""
        if not self.is_over:
            self._result, self._error = result, error
            self.is_over = True
            self.wake()

    def fail(self) -> None:
        """There is nobody left to answer it."""
        self.answer(None, asyncio.CancelledError())

    def cancel(self) -> None:
        """Under the lock: nobody waits any more."""

    def wake(self) -> None:
        """End the wait of the thread that waits now, or will next."""
        if self._signal.locked():  # else it was woken already
            self._signal.release()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was woken in time."""
        return self._signal.acquire(timeout=timeout_s)

    def outcome(self) -> Any:
        """Returns the result, or raises the error."""
        error = self._error
        if error is None:
            return self._result
        if isinstance(error, asyncio.CancelledError):
            raise SessionUnavailable(UnavailableReason.STOPPING)
        raise error


class CoroutineCall(ThreadCall):
    """A coroutine, run by a task."""

    __slots__ = ("_coroutine", "_task")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """On the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            result = await self._coroutine
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self.answer(None, error)
        else:
            self.answer(result, None)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class AwaitedCall(CoroutineCall):
    """A coroutine that another event loop waits for."""

    __slots__ = ("_loop", "_over")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__(coroutine)
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()

    def wake(self) -> None:
        super().wake()
        with contextlib.suppress(RuntimeError):  # that loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._over.set)

    async def until_answered(self, timeout_s: float) -> bool:
        """Whether it was answered in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        return self._over.is_set()
