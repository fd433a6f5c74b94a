"""Ends what is open when its session ends: WebSockets and streams (mission N4).

One watch for each session, whatever the number of its connections. While a lease holds nobody is asked: the web server
that closes the session elsewhere waits for that lease. When it is over, the session servers are asked, and again after
:meth:`Watching.pause_s`; a notice brings that forward.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import Final

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.errors import SessionUnavailable
from coatcheck.events import public_id
from coatcheck.replication.copies import Copies
from coatcheck.sessions.ending import Alive, SessionEnd, known_alive, look

log = logging.getLogger("coatcheck.sessions")

FAR: Final = float("inf")
"""The timeout of a session that is not hosted here; the first answer says when it is."""

OnEnd = Callable[[SessionEnd], None]


class WatchedConnection:
    """One connection that is to be told; :meth:`Watching.forget` takes it back."""

    __slots__ = ("key", "on_end")

    def __init__(self, key: bytes, on_end: OnEnd) -> None:
        self.key = key
        self.on_end = on_end


class _Watched:
    """One session. Moments are monotonic seconds."""

    __slots__ = ("asking", "due", "expires_at", "heard_at", "noticed", "watches")

    def __init__(self, now: float, alive: Alive) -> None:
        self.watches: dict[WatchedConnection, None] = {}
        self.heard_at = now
        self.due = now
        self.expires_at = alive.expires_at
        self.asking = False
        self.noticed = False
        """Whether a notice came while the question was on its way: the answer may be older."""


class Watching:
    """The watched sessions of one web server, on its event loop."""

    SHORTEST_PAUSE_S = 1.0
    LONGEST_PAUSE_S = 5.0
    """Between two questions about a session that another web server may own."""
    LEASE_SHARE = 0.75
    """Of a lease, between two questions: an answer may take the rest, and the end still comes within one lease."""
    BLIND_S = 30.0
    """How long something stays open while no session server answers."""
    ASKED_AT_ONCE = 64
    """Sessions; the others wait for their turn."""

    def __init__(self, copies: Copies, driver: AsyncioDriver, closed_before: Callable[[], int] = lambda: 0) -> None:
        """``closed_before``: when everybody's sessions were closed (Unix ms)."""
        self._copies = copies
        self._closed_before = closed_before
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._now = copies.world.monotonic
        self._watched: dict[bytes, _Watched] = {}
        self._due: list[tuple[float, bytes]] = []
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._asking: set[asyncio.Task[None]] = set()
        copies.cache.on_closed = self.closed

    @property
    def pause_s(self) -> float:
        """How long an answer without a lease is good for (seconds)."""
        return min(max(self.SHORTEST_PAUSE_S, self.LEASE_SHARE * self._copies.policy.lease_s), self.LONGEST_PAUSE_S)

    def __len__(self) -> int:
        return len(self._watched)

    def stop(self) -> None:
        """Tell nobody any more: the web server ends, and with it what is open."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking:
            task.cancel()
        self._watched.clear()
        self._due.clear()

    # -- what is open ------------------------------------------------------------------------------

    def watch(self, key: bytes, on_end: OnEnd) -> WatchedConnection:
        """Call ``on_end`` once, from the event loop, when the session has ended."""
        watch = WatchedConnection(key, on_end)
        watched = self._watched.get(key)
        if watched is None:
            now = self._now()
            # Whoever opens it has just asked, or has served the session from its lease.
            copy = self._copies.cache.get(key)
            expires_at = now + (copy.expires_at - self._copies.world.now_ms()) / 1000 if copy is not None else FAR
            alive = known_alive(self._copies, key) or Alive(now + self.pause_s, expires_at)
            watched = self._watched[key] = _Watched(now, alive)
            self._go_on(key, watched, alive)
        watched.watches[watch] = None
        if self._copies.cache.is_closed(key):
            self._loop.call_soon(self.closed, key)
        return watch

    def forget(self, watch: WatchedConnection) -> None:
        watched = self._watched.get(watch.key)
        if watched is not None:
            watched.watches.pop(watch, None)
            if not watched.watches:
                del self._watched[watch.key]

    # -- what is heard -----------------------------------------------------------------------------

    def closed(self, key: bytes) -> None:
        """The session is closed for certain."""
        if key in self._watched:
            self._end(key, SessionEnd.CLOSED)

    def noticed(self, key: bytes) -> None:
        """Another web server has claimed or closed the session: what it is now must be asked."""
        watched = self._watched.get(key)
        if watched is not None:
            watched.noticed = True
            self._wake_at(key, watched, self._now())

    def noticed_all(self) -> None:
        """Everybody's sessions were closed: which of those here were meant must be asked."""
        for key in list(self._watched):
            self.noticed(key)

    def _end(self, key: bytes, end: SessionEnd) -> None:
        for watch in self._watched.pop(key).watches:
            watch.on_end(end)

    # -- asking ------------------------------------------------------------------------------------

    def _wake_at(self, key: bytes, watched: _Watched, moment: float) -> None:
        watched.due = moment
        heapq.heappush(self._due, (moment, key))
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._due or len(self._asking) >= self.ASKED_AT_ONCE:
            return  # a question that ends sets it again
        due = self._due[0][0]
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - self._now()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._now()
        while self._due and self._due[0][0] <= now and len(self._asking) < self.ASKED_AT_ONCE:
            moment, key = heapq.heappop(self._due)
            watched = self._watched.get(key)
            if watched is None or watched.asking or watched.due > moment:
                continue  # forgotten, or put off since
            alive = known_alive(self._copies, key)
            if alive is not None and now < watched.expires_at:
                watched.noticed = False  # a lease that is good was earned after the notice
                self._go_on(key, watched, alive)
                continue
            watched.asking = True
            task = self._loop.create_task(self._ask(key, watched))
            self._asking.add(task)
            task.add_done_callback(self._asked)
        self._set_timer()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        self._set_timer()

    async def _ask(self, key: bytes, watched: _Watched) -> None:
        heard: Alive | SessionEnd | None = None
        watched.noticed = False
        try:
            heard = await self._driver.run(look(self._copies, key, self._closed_before()))
        except SessionUnavailable:
            """Nobody can say; how long that is borne is decided below."""
        except Exception as failure:
            log.error("session %s cannot be watched", public_id(key), exc_info=failure)
        watched.asking = False
        if self._watched.get(key) is not watched:
            return
        now = self._now()
        if isinstance(heard, Alive):
            self._go_on(key, watched, Alive(max(heard.sure_until + self.pause_s, now), heard.expires_at))
        elif heard is not None:
            timed_out = heard is SessionEnd.LOST and now >= watched.expires_at
            self._end(key, SessionEnd.EXPIRED if timed_out else heard)
        elif now >= watched.expires_at:
            self._end(key, SessionEnd.EXPIRED)
        elif now - watched.heard_at >= self.BLIND_S:
            self._end(key, SessionEnd.UNKNOWN)
        else:
            self._wake_at(key, watched, min(now + self.pause_s, watched.expires_at))

    def _go_on(self, key: bytes, watched: _Watched, alive: Alive) -> None:
        now = watched.heard_at = self._now()
        watched.expires_at = alive.expires_at
        # A long lease is looked at more often than it ends: what is forgotten meanwhile takes no space for long.
        due = min(alive.sure_until, alive.expires_at, now + self.LONGEST_PAUSE_S)
        self._wake_at(key, watched, now if watched.noticed else due)
