"""One exclusive flow per session at a time, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Whose turn it is, by key. Costs nothing but a dict entry while nobody has to wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[bytes, deque[asyncio.Future[None]] | None] = {}

    def take(self, key: bytes) -> bool:
        """Take the turn if it is free; whoever gets ``False`` must :meth:`wait`."""
        if key in self._waiting:
            return False
        self._waiting[key] = None
        return True

    async def wait(self, key: bytes) -> None:
        """Returns once the turn is the caller's. A cancelled wait takes nothing."""
        queue = self._waiting.get(key)
        if queue is None:
            queue = self._waiting[key] = deque()
        ours = self._loop.create_future()
        queue.append(ours)
        try:
            await ours
        except asyncio.CancelledError:
            if ours.done() and not ours.cancelled():
                self.give(key)  # the turn came in the same moment
            raise

    def give(self, key: bytes) -> None:
        """Give the turn to the next one who waits for it."""
        queue = self._waiting[key]
        while queue:
            following = queue.popleft()
            if not following.done():
                following.set_result(None)
                return
        del self._waiting[key]
