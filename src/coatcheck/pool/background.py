"""What goes on behind the callers of the pool for asyncio: callbacks, logouts, and steps that nothing tears."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from coatcheck.pool.commands import Parting
from coatcheck.pool.core import PoolCore
from coatcheck.pool.events import PoolEventKind
from coatcheck.pool.logouts import MAX_LOGOUTS, PARALLEL_LOGOUTS
from coatcheck.pool.options import is_coroutine_function
from coatcheck.pool.payload import token_of

T = TypeVar("T")


class Background:
    """The tasks of one pool that nobody awaits. ``closed(user, parting)`` tells the store that a logout is done."""

    def __init__(self, pool: PoolCore, closed: Callable[[str, Parting], Coroutine[Any, Any, None]]) -> None:
        self._pool = pool
        self._closed = closed
        self.tasks: set[asyncio.Task[Any]] = set()
        self._logouts = 0
        self._logging_out = asyncio.Semaphore(PARALLEL_LOGOUTS)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def cancellable(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` in a task of its own, which is left behind on a cancellation.

        Client libraries lose cancellations (``asyncio.wait_for`` does, up to Python 3.11); here none is lost.
        """
        task = self.spawn(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            task.cancel()
            raise
        return task.result()

    def cancel(self) -> None:
        for task in list(self.tasks):
            task.cancel()

    async def wait_for_room(self, count: int, until: float) -> None:
        """Wait until so many more logouts may wait, at most until ``until`` on the monotonic clock."""
        most = max(0, MAX_LOGOUTS - count)
        while self._logouts > most and (left_s := until - time.monotonic()) > 0:
            await asyncio.wait(list(self.tasks), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def add_logouts(self, user: str, partings: tuple[Parting, ...]) -> None:
        """Have dropped tokens logged out, without waiting for it."""
        if self._pool.settings.logout is None:
            return
        for parting in partings:
            if self._logouts >= MAX_LOGOUTS:
                self._pool.report(PoolEventKind.LOGOUT_SKIPPED, user, "too many wait")
                continue  # its slot is free again after logout_timeout
            self._logouts += 1
            self.spawn(self._log_out(user, parting))

    async def _log_out(self, user: str, parting: Parting) -> None:
        """Log one dropped token out, then free its slot."""
        settings = self._pool.settings
        assert settings.logout is not None
        try:
            async with self._logging_out:
                await call(settings.logout, (user, token_of(parting.value)), settings.policy.logout_timeout_s)
            self._pool.logged_out(user, parting)
        except Exception as error:  # noqa: BLE001 - a callback's, reported; the upstream will time the session out
            self._pool.logged_out(user, parting, error)
        finally:
            self._logouts -= 1
        if parting.fence:
            await self._closed(user, parting)


async def call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    timeout_s: float | None = None,
    late: Callable[[Any], None] | None = None,
) -> Any:
    """Call a callback: a coroutine function here, a plain one in a thread. Raises ``TimeoutError``, and its own errors.

    A thread cannot be stopped: what a plain function brings after ``timeout_s`` goes to ``late``.
    """
    if is_coroutine_function(function):
        async with asyncio.timeout(timeout_s):
            return await function(*arguments)
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))

    def finish(done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None and late is not None:
            late(done.result())

    try:
        async with asyncio.timeout(timeout_s):
            answer = await asyncio.shield(running)
            return await answer if inspect.isawaitable(answer) else answer
    except (TimeoutError, asyncio.CancelledError):
        if not running.done():
            running.add_done_callback(finish)
        raise


async def untorn(work: Coroutine[Any, Any, T], cancelled: list[asyncio.CancelledError]) -> T:
    """Await ``work`` to its end even when cancelled; the cancellation is noted, for the flow's next step."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as cancellation:
            # It may arrive together with the result. Only a cancellation of the work itself is not the caller's.
            if not task.cancelled():
                cancelled.append(cancellation)
        except Exception:  # noqa: BLE001 - raised by result() below
            break
    return task.result()
