"""Callers of this process that wait for a store which other processes share, and how to wake them at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator


class Wakers:
    """Who waits here: a key (of the user) and a ticket each. ``wake`` may be called by any thread."""

    def __init__(self) -> None:
        self._wakers: dict[tuple[str, int], Callable[[], object]] = {}

    def wake(self, key: str, tickets: Iterable[int]) -> None:
        """Wake those of ``tickets`` that wait here."""
        for ticket in tickets:
            waker = self._wakers.get((key, ticket))
            if waker is not None:
                waker()

    def elsewhere(self, key: str, tickets: Iterable[int]) -> list[int]:
        """Those of ``tickets`` that do not wait here."""
        return [ticket for ticket in tickets if (key, ticket) not in self._wakers]

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._wakers)

    @contextlib.contextmanager
    def sleeping(self, key: str, ticket: int) -> Iterator[threading.Event]:
        """For a thread: the event is set when it is woken."""
        woken = threading.Event()
        with self._registered(key, ticket, woken.set):
            yield woken

    @contextlib.contextmanager
    def awaiting(self, key: str, ticket: int) -> Iterator[asyncio.Event]:
        """For a task: the event is set when it is woken."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop of a caller who is gone may be closed
                loop.call_soon_threadsafe(woken.set)

        with self._registered(key, ticket, wake):
            yield woken

    @contextlib.contextmanager
    def _registered(self, key: str, ticket: int, waker: Callable[[], object]) -> Iterator[None]:
        self._wakers[key, ticket] = waker
        try:
            yield
        finally:
            self._wakers.pop((key, ticket), None)


def pauses(timeout_s: float, first_s: float, most_s: Callable[[], float]) -> Iterator[float]:
    """How long to sleep before each look: at first short, then longer up to ``most_s()``, until the time is up."""
    until = time.monotonic() + timeout_s
    pause_s = first_s
    while (left_s := until - time.monotonic()) > 0:
        yield min(left_s, pause_s * (0.5 + random.random()))
        pause_s = min(pause_s * 1.5, most_s())


async def set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for ``event``, at most ``timeout_s``; whether it came."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
