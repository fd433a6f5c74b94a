"""How many handshakes begin in one round of an event loop: many at once would be a stall for everybody else."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

PER_ROUND: Final = 3
"""A step of a handshake takes a fraction of a millisecond, and steps of the rounds before fall into the same one."""


class Turnstile:
    """Lets :data:`PER_ROUND` pass in each round of the loop; the others wait in line."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._passed = 0
        self._line: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for one's turn."""
        if self._passed < PER_ROUND and not self._line:
            if not self._passed:
                self._loop.call_soon(self._next_round)
            self._passed += 1
            return
        waiting: asyncio.Future[None] = self._loop.create_future()
        self._line.append(waiting)
        await waiting

    def _next_round(self) -> None:
        self._passed = 0
        while self._line and self._passed < PER_ROUND:
            waiting = self._line.popleft()
            if not waiting.done():  # else its task was cancelled
                waiting.set_result(None)
                self._passed += 1
        if self._passed:
            self._loop.call_soon(self._next_round)
