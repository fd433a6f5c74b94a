"""Session events for callers, as Server-Sent Events (HTML standard, section 9.2).

A process tells what it did itself: what other processes of the farm do is told by theirs. Who comes back with the
``Last-Event-ID`` of this very process is told what it has missed, as long as it is remembered; otherwise it is told
that it has missed something.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Literal

import msgspec

from coatcheck.events import Event, EventKind

MAX_REMEMBERED: Final = 10_000
"""Events that a process remembers for streams that come back; some two megabytes."""
MAX_STREAMS: Final = 100
MAX_STREAMS_OF_A_CALLER: Final = 50
KEEP_ALIVE_S: Final = 15.0
"""A comment is sent so often, so that who is gone is noticed."""
LOOK_EVERY_S: Final = 1.0
"""So often a stream looks whether its listener may still listen, though there is nothing to tell."""
BATCH: Final = 100
MAX_USER_CHARS: Final = 256

_TOLD: Final = frozenset(
    {
        EventKind.SESSION_CREATED,
        EventKind.SESSION_LOGIN,
        EventKind.SESSION_REGENERATED,
        EventKind.SESSION_ROTATED,
        EventKind.SESSION_NOT_FOUND,
        EventKind.SESSION_EXPIRED,
        EventKind.SESSION_ROLLED_BACK,
        EventKind.SESSION_THEFT,
        EventKind.DEAD_TOKEN,
        EventKind.SESSION_CLOSED,
        EventKind.TOKEN_REJECTED,
    }
)


class StreamedEvent(msgspec.Struct, frozen=True):
    """The data of one event. ``session`` is its public ID; no token, key or session data is in it."""

    session: str
    user: str
    detail: str


class Missed(msgspec.Struct, frozen=True):
    """``events``: how many; ``null``: nobody knows, for another process was listened to before."""

    events: int | None


class StreamEnded(msgspec.Struct, frozen=True):
    """The last event of a stream whose listener may not listen any more."""

    reason: Literal["revoked"] = "revoked"


class EventStream:
    """What was told lately. ``run``: names this process; belongs to the event loop of the service."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._kept: deque[tuple[str, bytes]] = deque(maxlen=MAX_REMEMBERED)
        self._told = 0
        """Events ever; the newest has this number."""
        self._news = asyncio.Event()
        self._stopped = False
        self._looks = 0
        """So often it was said that listeners are to be judged anew."""
        self._open: Counter[str] = Counter()
        """Streams by caller. One counts from the moment that it is granted, not from its first byte."""

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._open.total()

    def observe(self, event: Event) -> None:
        """An observer of sessions."""
        if event.kind in _TOLD:
            data = msgspec.json.encode(StreamedEvent(event.session, event.user[:MAX_USER_CHARS], event.detail))
            self._kept.append((event.kind.value, data))
            self._told += 1
            self._news.set()

    def stop(self) -> None:
        """End all streams, in order."""
        self._stopped = True
        self._news.set()

    def look_again(self) -> None:
        """Have each stream judge now whether its listener may still listen: the keys are others."""
        self._looks += 1
        self._news.set()

    def has_room(self, caller: str) -> bool:
        """Whether one more stream may be opened, and by this caller."""
        return self.streams < MAX_STREAMS and self._open[caller] < MAX_STREAMS_OF_A_CALLER

    def follow(
        self, last_event_id: str | None, may_listen: Callable[[], bool] = lambda: True, caller: str = ""
    ) -> AsyncIterator[bytes]:
        """The lines of one stream; ``last_event_id``: the header of who comes back. It ends, with a reason, when the
        listener may not listen any more: :data:`LOOK_EVERY_S` later at most, and before anything else is told by then.
        """
        self._open[caller] += 1
        release = _Once(self._open, caller)
        lines = self._follow(last_event_id, may_listen, release)
        weakref.finalize(lines, release)  # whoever is gone before the first line reads nothing, and ends nothing
        return lines

    async def _follow(
        self, last_event_id: str | None, may_listen: Callable[[], bool], release: Callable[[], None]
    ) -> AsyncIterator[bytes]:
        try:
            at, gap = self._begin(last_event_id)
            yield b": session events\n\n"
            if gap is not None:
                yield self._missed(gap, at)
            now_s = asyncio.get_running_loop().time
            said_at_s = now_s()
            while not self._stopped:
                if not may_listen():
                    yield b"event: ended\ndata: %s\n\n" % msgspec.json.encode(StreamEnded())
                    return
                looked_at_s, looks = now_s(), self._looks
                oldest = self._told - len(self._kept)
                if at < oldest:
                    missed, at = Missed(oldest - at), oldest
                    yield self._missed(missed, at)
                    continue
                if at < self._told:
                    # A copy of what is told now: more may come while it is sent.
                    lines = [self._kept[n - oldest] for n in range(at, min(self._told, at + BATCH))]
                    for kind, data in lines:
                        at += 1
                        yield b"id: %s.%d\nevent: %s\ndata: %s\n\n" % (self._run.encode(), at, kind.encode(), data)
                        said_at_s = now_s()
                        if looks != self._looks or said_at_s - looked_at_s >= LOOK_EVERY_S:
                            break  # who reads slowly may have been revoked meanwhile
                    continue
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._news.wait()
                if now_s() - said_at_s >= KEEP_ALIVE_S:
                    yield b": \n\n"
                    said_at_s = now_s()
        finally:
            release()

    def _begin(self, last_event_id: str | None) -> tuple[int, Missed | None]:
        """The number of the last event that need not be told, and what is told to be missed."""
        if not last_event_id:
            return self._told, None
        run, _, number = last_event_id.rpartition(".")
        if run != self._run or not number.isascii() or not number.isdecimal() or len(number) > 18:
            return self._told, Missed(None)
        return min(int(number), self._told), None

    def _missed(self, missed: Missed, at: int) -> bytes:
        return b"id: %s.%d\nevent: missed\ndata: %s\n\n" % (self._run.encode(), at, msgspec.json.encode(missed))


class _Once:
    """Takes one stream of a caller from the count, however often it is called."""

    def __init__(self, streams: Counter[str], caller: str) -> None:
        self._streams: Counter[str] | None = streams
        self._caller = caller

    def __call__(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[self._caller] -= 1
            if not streams[self._caller]:
                del streams[self._caller]
