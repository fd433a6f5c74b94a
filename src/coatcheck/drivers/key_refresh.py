"""Asking whoever knows about newer keys: one question at a time, and seldom, however many want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from coatcheck.tokens.freshness import ASK_EVERY_S, Freshness

RefreshKeys = Callable[[], Awaitable[bool]]
"""Brings the ring up to date, and returns whether it could; it raises nothing."""

ROUND_S: Final = 5.0
"""So often it is looked whether keys were changed elsewhere, though nobody wants to know."""
LIMIT_S: Final = 6.0
"""So long an answer may take; then whoever wants to know is refused, and may come again."""


class KeyRefresh:
    """Belongs to the event loop on which it is first called."""

    def __init__(self, refresh: RefreshKeys, every_s: float = ASK_EVERY_S, limit_s: float | None = LIMIT_S) -> None:
        self._refresh = refresh
        self._limit_s = limit_s
        self._freshness = Freshness(every_s)
        self._asking = asyncio.Lock()
        self._next: asyncio.Task[bool] | None = None
        """The question that is not asked yet."""

    async def __call__(self) -> bool:
        """Whether the ring is as new as can be now."""
        if not self._freshness.admit():
            return False
        try:
            if self._next is None:
                self._next = asyncio.ensure_future(self._ask())
            return await asyncio.shield(self._next)
        finally:
            self._freshness.leave()

    async def _ask(self) -> bool:
        async with self._asking:
            await asyncio.sleep(self._freshness.wait_s(time.monotonic()))
            self._next = None
            self._freshness.asks(time.monotonic())
            try:
                async with asyncio.timeout(self._limit_s):
                    return await self._refresh()
            except TimeoutError:
                return False  # it was not heard: whoever waits is refused
