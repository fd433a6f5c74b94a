"""The pool for threads, and the one for asyncio behind the same blocking calls, so that one test tries both."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from coatcheck.pool import AsyncTokenPool, TokenPool

LIMIT_S = 60.0


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


class Threads:
    """``call`` is made in this thread, ``start`` in one of its own."""

    def __init__(self, login: Any = None, **options: Any) -> None:
        self.pool: Any = TokenPool(login, **options)
        self._threads = ThreadPoolExecutor(16)

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    def start(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        return self._threads.submit(self.call, function, *arguments, **named)

    def close(self, **named: Any) -> None:
        self.call(self.pool.close, **named)
        self._threads.shutdown()

    def stats(self, user: str = "ann") -> Any:
        return self.call(self.pool.stats)[user]


class Tasks(Threads):
    """The same on an event loop in a thread of its own."""

    def __init__(self, login: Any = None, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.pool = AsyncTokenPool(login, **options)

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self.start(function, *arguments, **named).result(LIMIT_S)

    def start(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        async def run() -> Any:
            answer = function(*arguments, **named)
            return await answer if inspect.isawaitable(answer) else answer

        return asyncio.run_coroutine_threadsafe(run(), self.loop)

    def close(self, **named: Any) -> None:
        self.call(self.pool.close, **named)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT_S)
        self.loop.close()


BOTH: dict[str, type[Threads]] = {"threads": Threads, "asyncio": Tasks}
