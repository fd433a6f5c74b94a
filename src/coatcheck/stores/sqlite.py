"""A store in one SQLite file, shared by the processes of one machine.

Puts go to a worker thread, which commits all that have gathered while the last commit ran as one transaction.
Reads are done at once, in the loop's thread: a read of a WAL file waits for nobody, and goes on while the disk is full
or the file locked. The put rule is judged inside the write transaction, so it holds across processes. Notices reach
only subscribers of the same object: with SQLite a check is so cheap that leases are 0 and nobody needs to be told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import ConfigError, CorruptEntry
from coatcheck.event_log import log_event
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.put_rule import Verdict, encode_for_put, notice_of, pack_seen, servers_to_notify
from coatcheck.replication.version import Version
from coatcheck.session_server.table import check_key
from coatcheck.stores.bulletin import Bulletin
from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind
from coatcheck.stores.port import ACCEPTED, GetReply, PutReply, Refused, ScanReply, Unreachable
from coatcheck.stores.reachability import Reachability
from coatcheck.stores.sqlite_file import Durability, Offer, OfferOutcome, SqliteFile
from coatcheck.stores.sqlite_worker import SqliteWorker

logger = logging.getLogger("coatcheck.stores")

DEFAULT_TIMEOUT_S: Final = 5.0
"""A file is no network: nobody else could answer sooner, and on a busy machine a process that holds the lock may not
run for a second. Python's own sqlite3 waits as long."""
MAX_OUTSTANDING_PUTS: Final = 4096
MAX_SCAN_LIMIT: Final = 10_000
SWEEPS_PER_TIMEOUT: Final = 8
READ_CONNECT_TIMEOUT_S: Final = 0.25
"""After a fork it opens the file anew, in the loop's thread: others may be making the file, or taking the log away."""
_BUSY: Final = Unreachable("too many puts are outstanding")


class _Waiting(msgspec.Struct):
    """A put without a reply yet."""

    offer: Offer
    reply: Callable[[PutReply], None] | None
    since: float


class SqliteStore:
    """Keeps entries in the SQLite file at ``path``; see :class:`coatcheck.stores.port.Store`.

    ``durability`` says whether an accepted put survives a power cut (``FULL``, the default) or only the death of
    processes (``NORMAL``). Puts are answered within ``timeout_s`` (seconds). ``wall_clock`` answers Unix
    time in seconds; entries expire by it, so that processes and reboots agree. Raises :class:`ConfigError`
    for a path that cannot be shared.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        wall_clock: Callable[[], float],
        *,
        durability: Durability = Durability.FULL,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_event: EventSink = log_event,
    ) -> None:
        if not str(path) or str(path).startswith((":", "file:")):
            raise ConfigError(f"SQLite store: the path of a file is needed, not {str(path)!r}")
        self.name = name
        self._path = Path(path).absolute()  # an app may change its directory
        self._wall_clock = wall_clock
        self._durability = durability
        self._timeout_s = timeout_s
        self._on_event = on_event
        self._bulletin = Bulletin()
        self._reachability = Reachability(name, on_event)
        self._down = Unreachable("not opened")
        self._waiting: deque[_Waiting] = deque()
        self._reader: SqliteFile | None = None
        self._worker: SqliteWorker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def reachable(self) -> bool:
        return self._reachability.now

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        check_key(key)
        reply(self._read(key))

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        check_key(key)
        worker = self._worker
        if worker is None or self._loop is None or not self._reachability.now:
            return reply(self._down)
        if len(self._waiting) >= MAX_OUTSTANDING_PUTS:
            return reply(_BUSY)
        try:
            offer = Offer(key, pack_seen(seen), new.expires_in_ms, encode_for_put(new), notify)
        except CorruptEntry as impossible:
            return reply(self._report(StoreEventKind.PUT_IMPOSSIBLE, str(impossible)))
        self._waiting.append(_Waiting(offer, reply, self._loop.time()))
        return worker.offer(offer)

    def scan(self, cursor: int, limit: int, reply: Callable[[ScanReply], None]) -> None:
        reply(self._scan(max(cursor, 0), min(max(limit, 1), MAX_SCAN_LIMIT)))

    def publish(self, server_id: bytes, message: bytes) -> None:
        self._bulletin.publish(server_id, message)

    def subscribe(self, server_id: bytes, on_message: Callable[[bytes], None]) -> None:
        self._bulletin.subscribe(server_id, on_message)

    def watch(self, on_change: Callable[[str, bool], None]) -> None:
        self._reachability.watch(on_change)

    def watch_clock(self, on_time: Callable[[str, float, float], None]) -> bool:
        return False

    def watch_notices(self, on_heard: Callable[[str, float], None], period_s: float) -> None:
        """Never calls: no process hears of what another one writes."""

    async def open(self) -> None:
        if self._worker is not None:
            raise RuntimeError(f"store {self.name} is open already")
        self._loop = asyncio.get_running_loop()
        tried = asyncio.Event()
        messenger = _Messenger(self, self._loop, tried)
        self._worker = SqliteWorker(self._open_file, self._open_reader, self._now_ms, messenger)
        self._worker.start()
        self._sweep()
        await tried.wait()

    async def aclose(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._down = Unreachable("closed")
        self._reachability.set(False, "closed", event=False)
        self._answer_all(self._down)
        worker.stop()
        await asyncio.get_running_loop().run_in_executor(None, worker.join, self._timeout_s)
        self._close_reader()
        self._bulletin.clear()

    # From the worker, in the loop's thread (see _Messenger)

    def done(self, outcomes: list[OfferOutcome]) -> None:
        """Answer the oldest puts; a reply that came too late was answered already and is dropped."""
        for outcome in outcomes:
            waiting = self._waiting.popleft()
            reply, waiting.reply = waiting.reply, None
            answer = self._answer_of(waiting.offer, outcome)
            if reply is not None:
                self._answer(reply, answer)
        if self._worker is not None and self._reader is not None:
            self._reachability.set(True, "a commit succeeded")

    def failed(self, offers: int, why: str) -> None:
        for _ in range(offers):
            waiting = self._waiting.popleft()
            if waiting.reply is not None:
                self._answer(waiting.reply, Unreachable(why))

    def opened(self, reader: SqliteFile) -> None:
        """The worker has opened the file, and a reader of it."""
        if self._worker is None:
            reader.close()
            return
        self._close_reader()
        self._reader = reader
        self._reachability.set(True, f"writing to {self._path}")

    def broken(self, why: str, readable: bool) -> None:
        """The worker cannot write; the reader goes with it, unless it can still read."""
        if self._worker is None:
            return
        if not readable:
            self._close_reader()
        self._down = Unreachable(why)
        self._reachability.set(False, why)

    # Inside

    def _read(self, key: bytes) -> GetReply:
        if self._reader is None:
            return self._down
        try:
            found = self._reader.find(key, self._now_ms())
            return decode_entry(*found) if found is not None else None
        except CorruptEntry as corrupt:
            return self._report(StoreEventKind.CORRUPT_ENTRY, str(corrupt))
        except sqlite3.Error as broken:
            return self._unreadable(broken)

    def _scan(self, cursor: int, limit: int) -> ScanReply:
        if self._reader is None:
            return self._down
        try:
            return self._reader.scan(cursor, limit, self._now_ms())
        except sqlite3.Error as broken:
            return self._unreadable(broken)

    def _unreadable(self, broken: sqlite3.Error) -> Unreachable:
        if self._worker is not None and not isinstance(broken, sqlite3.OperationalError):
            self._worker.doubt()
        return self._report(StoreEventKind.REFUSED_BY_SERVER, str(broken))

    def _answer_of(self, offer: Offer, outcome: OfferOutcome) -> PutReply:
        if outcome.corrupt:
            return self._report(StoreEventKind.CORRUPT_ENTRY, outcome.corrupt)
        stored = outcome.stored
        if outcome.verdict is Verdict.REFUSED:
            return Refused(decode_entry(stored, outcome.left_ms) if stored is not None else None)
        for server_id in servers_to_notify(outcome.verdict, stored, offer.notify):
            self._bulletin.publish(server_id, notice_of(offer.key, offer.new))
        return ACCEPTED

    def _answer(self, reply: Callable[[PutReply], None], answer: PutReply) -> None:
        try:
            reply(answer)
        except Exception:
            # The caller's fault must not cost the other callers their replies.
            logger.exception("a reply callback failed")

    def _answer_all(self, answer: Unreachable) -> None:
        for waiting in self._waiting:
            reply, waiting.reply = waiting.reply, None
            if reply is not None:
                self._answer(reply, answer)

    def _sweep(self) -> None:
        """Answer the puts that wait for too long: the disk, or another process, holds the worker up."""
        assert self._loop is not None
        self._sweeper = self._loop.call_later(self._timeout_s / SWEEPS_PER_TIMEOUT, self._sweep)
        if self._waiting and self._loop.time() - self._waiting[0].since >= self._timeout_s:
            doing = self._worker.doing if self._worker is not None else "has ended"
            self._down = Unreachable(f"no commit within {self._timeout_s:g} s: its thread {doing}")
            self._reachability.set(False, self._down.why)
            self._answer_all(self._down)

    def _open_file(self) -> SqliteFile:
        # Shorter than the time-out, so that a lock is told from a worker that hangs.
        return SqliteFile(self._path, self._durability, self._timeout_s / 2)

    def _open_reader(self) -> SqliteFile:
        reader = SqliteFile(self._path, self._durability, self._timeout_s / 2)
        reader.connect_timeout_s = READ_CONNECT_TIMEOUT_S
        return reader

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _report(self, kind: StoreEventKind, why: str) -> Unreachable:
        self._on_event(StoreEvent(self.name, kind, why))
        return Unreachable(why)

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)


class _Messenger:
    """Carries the worker's words into the loop's thread, where the store's state lives."""

    def __init__(self, store: SqliteStore, loop: asyncio.AbstractEventLoop, tried: asyncio.Event) -> None:
        self._store = store
        self._loop = loop
        self._tried = tried

    def done(self, outcomes: list[OfferOutcome]) -> None:
        self._post(self._store.done, outcomes)

    def failed(self, offers: int, why: str) -> None:
        self._post(self._store.failed, offers, why)

    def opened(self, reader: SqliteFile) -> None:
        if not self._post(self._store.opened, reader):
            reader.close()
        self._post(self._tried.set)

    def broken(self, why: str, readable: bool) -> None:
        self._post(self._store.broken, why, readable)
        self._post(self._tried.set)

    def _post(self, what: Callable[..., None], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError as closed:
            logger.debug("the event loop is gone: %s", closed)
            return False
        return True
