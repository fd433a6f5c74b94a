"""A store in this process's own memory: for tests, trials and a single web server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Final

from coatcheck.errors import CorruptEntry
from coatcheck.event_log import log_event
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.put_rule import Verdict, encode_for_put, pack_seen
from coatcheck.replication.version import Version
from coatcheck.session_server.table import DEFAULT_MAX_BYTES, EntryTable, TableFull, check_key
from coatcheck.stores.bulletin import Bulletin
from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind
from coatcheck.stores.port import ACCEPTED, GetReply, PutReply, Refused, ScanReply, Unreachable
from coatcheck.stores.reachability import Reachability

SWEEP_STEPS_PER_PUT: Final = 4
SWEEP_STEPS_PER_PERIOD: Final = 2048
SWEEP_PERIOD_S: Final = 0.5
_CLOSED: Final = Unreachable("the store is closed")


class MemoryStore:
    """Keeps entries in memory and replies before the call returns; see :class:`coatcheck.stores.port.Store`.

    ``clock`` answers seconds and never goes back (``time.monotonic``). Over ``max_bytes`` new entries are
    answered as unreachable; nothing is evicted.
    """

    def __init__(
        self,
        name: str,
        clock: Callable[[], float],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        on_event: EventSink = log_event,
        beside: MemoryStore | None = None,
    ) -> None:
        """``beside``: the same session server, on another event loop; the two share what is stored."""
        self.name = name
        self._clock = clock
        self._on_event = on_event
        self._bulletin = Bulletin()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: _Shared = beside._shared if beside is not None else _Shared(max_bytes)
        self._shared.places.add(self)
        self._table = self._shared.table
        self._reachability = Reachability(name, on_event)
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def reachable(self) -> bool:
        return not self._closed

    @property
    def table(self) -> EntryTable:
        """What is stored, for status pages and tests."""
        return self._table

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        check_key(key)
        if self._closed:
            return reply(_CLOSED)
        with self._shared.lock:
            found = self._table.get(key, self._now_ms())
        if found is None:
            return reply(None)
        try:
            entry = decode_entry(*found)
        except CorruptEntry as corrupt:
            return reply(self._impossible(StoreEventKind.CORRUPT_ENTRY, str(corrupt)))
        return reply(entry)

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        check_key(key)
        reply(self._put(key, seen, new, notify))

    def scan(self, cursor: int, limit: int, reply: Callable[[ScanReply], None]) -> None:
        with self._shared.lock:
            answer = _CLOSED if self._closed else self._table.scan(cursor, limit, self._now_ms())
        reply(answer)

    def publish(self, server_id: bytes, message: bytes) -> None:
        if not self._closed:
            self._shared.publish(server_id, message)

    def subscribe(self, server_id: bytes, on_message: Callable[[bytes], None]) -> None:
        self._bulletin.subscribe(server_id, on_message)

    def watch(self, on_change: Callable[[str, bool], None]) -> None:
        self._reachability.watch(on_change)

    def watch_clock(self, on_time: Callable[[str, float, float], None]) -> bool:
        return False

    def watch_notices(self, on_heard: Callable[[str, float], None], period_s: float) -> None:
        """Never calls: messages of other threads come later than the replies."""

    async def open(self) -> None:
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._reachability.set(True)
        self._sweep_later()

    async def aclose(self) -> None:
        self._closed = True
        self._loop = None
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._bulletin.clear()
        self._reachability.set(False, "closed", event=False)

    def _put(self, key: bytes, seen: Version | None, new: Entry, notify: bytes) -> PutReply:
        if self._closed:
            return _CLOSED
        now_ms = self._now_ms()
        try:
            with self._shared.lock:
                self._table.sweep(now_ms, SWEEP_STEPS_PER_PUT)
                raw = encode_for_put(new)
                verdict = self._table.put(key, pack_seen(seen), new.expires_in_ms, raw, now_ms, notify)
                if verdict is not Verdict.REFUSED:
                    return ACCEPTED
                stored = self._table.get(key, now_ms)
            return Refused(decode_entry(*stored) if stored is not None else None)
        except TableFull as full:
            self._on_event(StoreEvent(self.name, StoreEventKind.FULL, str(full)))
            return Unreachable(str(full), full=True)
        except CorruptEntry as impossible:
            return self._impossible(StoreEventKind.PUT_IMPOSSIBLE, str(impossible))

    def _impossible(self, kind: StoreEventKind, why: str) -> Unreachable:
        self._on_event(StoreEvent(self.name, kind, why))
        return Unreachable(why)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _sweep_later(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_PERIOD_S, self._sweep)

    def _sweep(self) -> None:
        with self._shared.lock:
            self._table.sweep(self._now_ms(), SWEEP_STEPS_PER_PERIOD)
        self._sweep_later()

    def take_message(self, server_id: bytes, message: bytes) -> None:
        """Hand a message to the listeners on this store's own event loop."""
        loop = self._loop
        if loop is None or server_id not in self._bulletin.server_ids():
            return
        if loop is _running_loop():
            self._bulletin.publish(server_id, message)
        else:
            with contextlib.suppress(RuntimeError):  # that loop has just ended
                loop.call_soon_threadsafe(self._bulletin.publish, server_id, message)


class _Shared:
    """What the stores of several event loops, and so of several threads, have in common."""

    def __init__(self, max_bytes: int) -> None:
        self.lock = threading.RLock()
        self.table = EntryTable(self.publish, max_bytes)
        self.places: weakref.WeakSet[MemoryStore] = weakref.WeakSet()

    def publish(self, server_id: bytes, message: bytes) -> None:
        for place in list(self.places):
            place.take_message(server_id, message)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
