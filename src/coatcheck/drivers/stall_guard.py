"""Notices that this process was frozen or its loop blocked, and stops trusting leases (protocol section 5)."""

from __future__ import annotations

import asyncio
import time

from coatcheck.replication.cache import Cache


class StallGuard:
    """A heart-beat on the event loop. After a stall, other web servers may have claimed what is cached here, and
    their notices are still in the sockets, behind requests that were waiting too."""

    BEAT_S = 0.05
    STALL_S = 0.25

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._loop = asyncio.get_running_loop()
        self._last = time.monotonic()
        self._timer = self._loop.call_later(self.BEAT_S, self._beat)
        self.stalls = 0

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._last > self.STALL_S:
            self.stalls += 1
            self._cache.revoke_leases()
        self._last = now
        self._timer = self._loop.call_later(self.BEAT_S, self._beat)

    def stop(self) -> None:
        self._timer.cancel()
