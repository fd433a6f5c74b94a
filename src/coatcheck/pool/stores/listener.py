"""Hearing from a store whose turn it is: one connection per process that listens while somebody waits here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final

from coatcheck.pool.stores.wakers import Wakers

HEAR_S: Final = 0.5
"""So often a listener looks whether it is still needed."""
STAY_S: Final = 30.0
"""How long it stays when nobody waits."""
RETRY_S: Final = 5.0
"""Not sooner after a connection that failed; until then waiting callers look for themselves."""
MAX_TICKETS: Final = 200
"""In one message, which PostgreSQL limits to 8000 bytes; who is not named looks for itself."""


class Ear:
    """What both listeners share: the channel, the messages, and when to listen."""

    def __init__(self, pool: str, wakers: Wakers) -> None:
        self.channel = f"coatcheck_pool_{digest(pool)}"
        self.wakers = wakers
        self.listening = False
        self.closed = False
        self.failed_at = -RETRY_S
        self._last_needed = 0.0

    def worth_it(self) -> bool:
        return not self.closed and time.monotonic() - self.failed_at >= RETRY_S

    def begin(self) -> None:
        self.listening = True
        self._last_needed = time.monotonic()
        self.wakers.wake_all()  # they may have missed what was said before

    def enough(self) -> bool:
        """Whether to stop listening."""
        if self.wakers:
            self._last_needed = time.monotonic()
        return self.closed or time.monotonic() - self._last_needed >= STAY_S

    def hear(self, message: str) -> None:
        """Whoever may connect to the store can send such messages: all they can do is make us look."""
        key, _, tickets = message.partition(":")
        with suppress(ValueError):
            self.wakers.wake(key, [int(ticket) for ticket in tickets.split(",")])


def key_of(user: str) -> str:
    """What stands for a user in messages: never longer, and nobody's name."""
    return digest(user)


def message(user: str, tickets: Iterable[int]) -> str:
    return f"{key_of(user)}:{','.join(str(ticket) for ticket in list(tickets)[:MAX_TICKETS])}"


def digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12, person=b"coatcheck-pool").hexdigest()


class Listener:
    """For threads: a thread of its own, from the first caller who waits until nobody did for ``STAY_S``.

    ``listen`` calls ``ear.begin()`` when it is connected, and ``ear.hear`` until it is enough; ``trouble``: what it may
    raise.
    """

    def __init__(self, ear: Ear, listen: Callable[[], None], trouble: type[Exception]) -> None:
        self.ear = ear
        self._listen = listen
        self._trouble = trouble
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def need(self) -> None:
        """Somebody waits."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self.ear.worth_it() and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._run, name="coatcheck-pool-listener", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            self._listen()
        except self._trouble:
            self.ear.failed_at = time.monotonic()  # callers go on looking for themselves
        finally:
            self.ear.listening = False

    def close(self) -> None:
        self.ear.closed = True
        if self._thread is not None:
            self._thread.join(2 * HEAR_S)


class AsyncListener:
    """For asyncio: the same as a task."""

    def __init__(self, ear: Ear, listen: Callable[[], Coroutine[Any, Any, None]], trouble: type[Exception]) -> None:
        self.ear = ear
        self._listen = listen
        self._trouble = trouble
        self._task: asyncio.Task[None] | None = None

    def need(self) -> None:
        """Somebody waits."""
        if self.ear.worth_it() and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._listen()
        except self._trouble:
            self.ear.failed_at = time.monotonic()  # callers go on looking for themselves
        finally:
            self.ear.listening = False

    async def close(self) -> None:
        self.ear.closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=2 * HEAR_S)
