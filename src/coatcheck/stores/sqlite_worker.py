"""The thread that writes to the SQLite file: group commit, sweeps, and coming back after a failure."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from coatcheck.stores.sqlite_file import Offer, OfferOutcome, SqliteFile

logger = logging.getLogger("coatcheck.stores")

MAX_OFFERS_PER_COMMIT: Final = 256
SWEEP_PERIOD_S: Final = 1.0
FIRST_RETRY_S: Final = 0.02
MAX_RETRY_S: Final = 0.5


class OfferListener(Protocol):
    """Who hears of the worker, in the worker's thread; offers are done or failed in the order they came."""

    def done(self, outcomes: list[OfferOutcome]) -> None:
        """These offers are on disk (or refused)."""
        ...

    def failed(self, offers: int, why: str) -> None:
        """What became of this many offers is unknown."""
        ...

    def opened(self, reader: SqliteFile) -> None:
        """The file has been opened anew and written to; ``reader`` is the listener's, to close as well."""
        ...

    def broken(self, why: str, readable: bool) -> None:
        """Why the file cannot be written to, and whether reading makes sense."""
        ...


class SqliteWorker:
    """Owns the writing connection. ``offer`` is for the loop's thread; its caller bounds how many wait."""

    def __init__(
        self,
        open_file: Callable[[], SqliteFile],
        open_reader: Callable[[], SqliteFile],
        now_ms: Callable[[], int],
        listener: OfferListener,
    ) -> None:
        self._open_file = open_file
        self._open_reader = open_reader
        self._now_ms = now_ms
        self._listener = listener
        self._offers: queue.SimpleQueue[Offer | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coatcheck-sqlite", daemon=True)
        self._doubted = threading.Event()
        self._swept_at = 0.0
        self.doing = "starts"
        """What the thread is at, for whoever has to say why nothing comes from it."""

    def start(self) -> None:
        self._thread.start()

    def offer(self, offer: Offer) -> None:
        self._offers.put(offer)

    def doubt(self) -> None:
        """A reader could not read the file: open it anew before the next commit."""
        self._doubted.set()

    def stop(self) -> None:
        """End after the commit that is running; what still waits is not written."""
        self._stopping.set()
        self._offers.put(None)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        file: SqliteFile | None = None
        retry_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                if file is None:
                    file = self._open()
                    retry_s = FIRST_RETRY_S
                self._work(file)
            except Exception as broken:
                if not isinstance(broken, sqlite3.Error | OSError):
                    logger.exception("the SQLite worker failed")
                if file is not None:
                    file.close()
                    file = None
                self._tell(broken)
                if offers := self._gather(0.0):
                    self._listener.failed(len(offers), str(broken))
                self._stopping.wait(retry_s)
                retry_s = min(retry_s * 2, MAX_RETRY_S)
        if file is not None:
            file.close()

    def _open(self) -> SqliteFile:
        self.doing = "opens the file"
        file = self._open_file()
        try:
            file.probe(self._now_ms())
            reader = self._open_reader()  # here, for it may have to wait, and nobody waits for this thread
        except BaseException:
            file.close()
            raise
        self._listener.opened(reader)
        return file

    def _work(self, file: SqliteFile) -> None:
        if self._doubted.is_set():
            self._doubted.clear()
            raise sqlite3.DatabaseError("the file could not be read")
        self.doing = "waits for writes"
        offers = self._gather(SWEEP_PERIOD_S)
        if offers:
            self.doing = "writes"
            try:
                outcomes = file.put_all(offers, self._now_ms)
            except BaseException as broken:
                # First the state: whoever is answered must not try here again at once.
                self._tell(broken)
                self._listener.failed(len(offers), str(broken))
                raise
            self._listener.done(outcomes)
        now = time.monotonic()
        if now - self._swept_at >= SWEEP_PERIOD_S:
            self._swept_at = now
            self.doing = "looks for damage and for what has expired"
            self._keep_house(file)

    def _keep_house(self, file: SqliteFile) -> None:
        if (damage := file.damage()) is not None:
            raise sqlite3.DatabaseError(damage)
        try:
            file.sweep(self._now_ms())
        except sqlite3.OperationalError as busy:
            # Another process writes: it sweeps as well, and so shall we next time.
            logger.debug("sweep put off: %s", busy)

    def _gather(self, wait_s: float) -> list[Offer]:
        """All offers that wait, up to a bound; if there is none, the first that comes within ``wait_s``."""
        offers: list[Offer] = []
        try:
            while len(offers) < MAX_OFFERS_PER_COMMIT:
                offer = self._offers.get(timeout=wait_s) if not offers and wait_s else self._offers.get_nowait()
                if offer is None:
                    break
                offers.append(offer)
        except queue.Empty:
            return offers
        return offers

    def _tell(self, broken: BaseException) -> None:
        # A lock, a full disk or a failed write leave the file readable; a wrong or damaged file is neither.
        readable = isinstance(broken, sqlite3.OperationalError)
        self._listener.broken(str(broken) or type(broken).__name__, readable)
