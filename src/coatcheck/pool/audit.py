"""The audit of a pool: who borrowed which token when. To a function of the user's, or to a file of JSON lines.

A token is named by its number (``token_id`` of ``pool.list()``), which is its own from login to end, whatever its
string becomes, and opens nothing. No record holds a token, a password or a payload.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.audit_lines import AuditFile, utc_text
from coatcheck.pool.anomalies import Anomaly, Sight, Watch
from coatcheck.pool.commands import (
    Both,
    Command,
    CommandOutcome,
    Extend,
    Granted,
    LoginEnded,
    Lost,
    Release,
    Reset,
    TakeIdle,
    Then,
    TokenNote,
)
from coatcheck.pool.errors import LoginRefused
from coatcheck.pool.events import PoolEvent, PoolEventKind
from coatcheck.pool.masking import check_caller
from coatcheck.pool.telling import TOO_MANY, Teller

MAX_BYTES: Final = 64 << 20
"""Of the files of one log, together."""
MAX_LENT: Final = 10_000
"""Leases of this process whose borrowers are remembered; if more are out, those of the first are not told by name."""

_caller: Final[ContextVar[str]] = ContextVar("coatcheck_pool_caller", default="")


@contextmanager
def calling_as(caller: str) -> Iterator[None]:
    """What this thread (or task) does with pools meanwhile is done for ``caller``: a job, a tenant, who is logged in.

    Raises ``ValueError`` for what is no string of 1 to 200 printable characters.
    """
    token = _caller.set(check_caller(caller))
    try:
        yield
    finally:
        _caller.reset(token)


def now_calling_as(caller: str) -> None:
    """The same until this task ends."""
    _caller.set(caller)


class AuditKind(Enum):
    """Everything that is audited; the value is its name in records."""

    LOGIN = "pool.login"
    LOGIN_FAILED = "pool.login_failed"
    LOGIN_REFUSED = "pool.login_refused"
    BORROWED = "pool.borrowed"
    EXTENDED = "pool.extended"
    RENEWED = "pool.renewed"
    RETURNED = "pool.returned"
    TOO_LATE = "pool.too_late"
    LEASE_LOST = "pool.lease_lost"
    LEASE_HELD_LONG = "pool.lease_held_long"
    REFUSED = "pool.refused"
    DROPPED = "pool.dropped"
    REMOVED = "pool.removed"
    RESET = "pool.reset"
    LOGGED_OUT = "pool.logged_out"
    LOGOUT_FAILED = "pool.logout_failed"
    ANOMALY = "pool.anomaly"
    AUDIT_LOST = "pool.audit_lost"


_OF_NOTES: Final = {
    "opened": (AuditKind.LOGIN, ""),
    "returned": (AuditKind.RETURNED, ""),
    "lost": (AuditKind.LEASE_LOST, "past its deadline; the token is dropped"),
    "refused": (AuditKind.REFUSED, "believed"),
    "kept": (AuditKind.REFUSED, "not believed: fresh from a login"),
    "expired": (AuditKind.DROPPED, "expired"),
    "used_up": (AuditKind.DROPPED, "used up"),
    "room": (AuditKind.DROPPED, "for a login with other credentials"),
    "dead": (AuditKind.DROPPED, "the upstream called it dead"),
    "given_up": (AuditKind.DROPPED, "by its borrower"),
    "removed": (AuditKind.REMOVED, ""),
    "reset": (AuditKind.REMOVED, "reset"),
}
"""What the rules note of a token, as a record says it."""

_OF_BORROWERS: Final = frozenset({"lost"})
"""Notes of what a borrower did, whoever found it out."""

_SIGHTS: Final = {
    AuditKind.BORROWED: Sight.BORROWED,
    AuditKind.LOGIN: Sight.LOGIN,
    AuditKind.LOGIN_FAILED: Sight.FAILED_LOGIN,
    AuditKind.LOGIN_REFUSED: Sight.FAILED_LOGIN,
    AuditKind.LEASE_LOST: Sight.LOST,
    AuditKind.LEASE_HELD_LONG: Sight.HELD_LONG,
}


class PoolAuditRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. ``time``: UTC (RFC 3339). ``server``: host and process ID. ``caller``: who asked, as far as known.

    ``lease``: its fencing number. ``token``: its number, stable over renewals. ``user`` and ``caller`` are any
    printable text.
    """

    time: str
    event: str
    server: str
    pool: str
    user: str = ""
    caller: str = ""
    lease: int = 0
    token: int = 0
    detail: str = ""


class PoolAuditLog:
    """A file of records, a line of JSON each; it is ``on_audit=PoolAuditLog(path).write``. A file has one writer.

    At most ``max_bytes`` in four files, of which the oldest goes. Raises ``ConfigError`` if it cannot be written.
    """

    def __init__(self, path: Path | str, max_bytes: int = MAX_BYTES) -> None:
        self._file = AuditFile(Path(path), max_bytes, "audit_file")

    def write(self, record: PoolAuditRecord) -> None:
        self._file.write(record)

    def close(self) -> None:
        self._file.close()


class PoolAudit:
    """Makes the records of one pool, and counts. Nobody who borrows waits for ``tell`` or ``told``.

    ``caller``: where none is named. ``told``: gets the events of what stands out, and of records that are lost.
    """

    def __init__(
        self,
        pool: str,
        caller: str,
        tell: Callable[[PoolAuditRecord], Any] | None,
        watch: Watch | None,
        told: Callable[[PoolEvent], Any],
    ) -> None:
        self._pool = pool
        self._default = caller
        self._tell = tell
        self._told = told
        self._watch = watch
        self.anomalies: Counter[str] = Counter()
        """How often each count stood out."""
        self.closing = False
        """The pool drops what it has."""
        self.teller = Teller(self._pass_on, self._told_lost)
        self.start_anew()

    def start_anew(self) -> None:
        """After a fork: leases are the parent's."""
        self._server = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.RLock()  # also for a signal handler that borrows
        self._lent: dict[tuple[str, int], tuple[str, int]] = {}  # who borrowed which token
        self._shared: dict[tuple[str, int, str], None] = {}

    # -- what happens

    def caller(self) -> str:
        return _caller.get() or self._default

    def note(
        self,
        kind: AuditKind,
        user: str,
        *,
        lease: int = 0,
        token: int = 0,
        detail: str = "",
        caller: str | None = None,
    ) -> None:
        """This happened just now; ``caller``: by somebody else than who runs this."""
        if caller is None:
            caller = self.caller()
        sight = _SIGHTS.get(kind)
        if self._tell is not None:
            self.teller.put((time.time(), kind, user, caller, lease, token, detail))
        if sight is None or self._watch is None:
            return
        with self._lock:
            found = self._watch.see(time.monotonic(), sight, user, caller)
            for anomaly in found:
                self.anomalies[anomaly.count.value] += 1
        for anomaly in found:
            self.teller.put((time.time(), AuditKind.ANOMALY, user, caller, lease, token, anomaly))

    def borrowed(self, user: str, granted: Granted, detail: str = "") -> None:
        """Whoever runs this has the lease."""
        caller = self.caller()
        with self._lock:
            self._lent[user, granted.fence] = caller, granted.token_id
            if len(self._lent) > MAX_LENT:
                del self._lent[next(iter(self._lent))]
        self.note(AuditKind.BORROWED, user, lease=granted.fence, token=granted.token_id, detail=detail, caller=caller)

    def borrowed_shared(self, user: str, number: int) -> None:
        """Whoever runs this uses a shared token; it is told once for each caller and token."""
        caller = self.caller()
        key = user, number, caller
        with self._lock:
            if key in self._shared:
                return
            self._shared[key] = None
            if len(self._shared) > MAX_LENT:
                del self._shared[next(iter(self._shared))]
        self.note(AuditKind.BORROWED, user, token=number, detail="shared", caller=caller)

    def held_long(self, user: str, lease: int, detail: str) -> None:
        caller, token = self._borrower(user, lease, forget=False)
        self.note(AuditKind.LEASE_HELD_LONG, user, lease=lease, token=token, detail=detail, caller=caller)

    def login_failed(self, user: str, error: BaseException) -> None:
        kind = AuditKind.LOGIN_REFUSED if isinstance(error, LoginRefused) else AuditKind.LOGIN_FAILED
        self.note(kind, user, detail="shared")

    def not_tried(self, user: str) -> None:
        self.note(AuditKind.LOGIN_REFUSED, user, detail="not tried again")

    def applied(self, user: str, command: Command, outcome: CommandOutcome) -> None:
        """A store has done what it was asked by whoever runs this. What it granted may be for somebody else."""
        first = command.first if isinstance(command, Then) else command
        reply = outcome.reply.first if isinstance(outcome.reply, Both) else outcome.reply
        for note in outcome.notes:
            self._noted(user, note, first)
        if isinstance(first, Release | Extend) and type(reply) is Lost:
            _, token = self._borrower(user, first.fence)
            detail = "to give it back" if isinstance(first, Release) else "to extend it"
            self.note(AuditKind.TOO_LATE, user, lease=first.fence, token=token, detail=detail)
        elif isinstance(first, Extend) and first.renew and type(reply) is Granted:
            self.note(AuditKind.EXTENDED, user, lease=first.fence, token=reply.token_id)
        elif isinstance(first, TakeIdle) and type(reply) is Granted:
            self.borrowed(user, reply, "to keep it alive")
        elif isinstance(first, LoginEnded) and first.failed:
            kind = AuditKind.LOGIN_REFUSED if first.refused else AuditKind.LOGIN_FAILED
            self.note(kind, user, detail="by the upstream" if first.refused else "")
        elif isinstance(first, Reset):
            self.note(AuditKind.RESET, user)

    def _noted(self, user: str, note: TokenNote, command: Command) -> None:
        kind, detail = _OF_NOTES[note.what]
        if note.what == "removed" and self.closing:
            kind, detail = AuditKind.DROPPED, "the pool is closed"
        caller: str | None = None
        if note.lease and note.what not in ("refused", "kept"):
            borrower, _ = self._borrower(user, note.lease)
            if note.what in _OF_BORROWERS:
                caller = borrower
        if note.what == "returned" and isinstance(command, Release) and command.value is not None:
            self.note(AuditKind.RENEWED, user, lease=note.lease, token=note.token_id)
        self.note(kind, user, lease=note.lease, token=note.token_id, detail=detail, caller=caller)

    def _borrower(self, user: str, lease: int, *, forget: bool = True) -> tuple[str, int]:
        """Who borrowed it, and which token, if that was here; else nobody."""
        with self._lock:
            found = self._lent.pop((user, lease), None) if forget else self._lent.get((user, lease))
        return found or ("", 0)

    # -- in the teller's thread

    def _pass_on(self, item: tuple[float, AuditKind, str, str, int, int, str | Anomaly]) -> None:
        at, kind, user, caller, lease, token, detail = item
        if isinstance(detail, Anomaly):
            detail = detail.words()
            self._told(PoolEvent(PoolEventKind.ANOMALY, user, detail))
        if self._tell is not None:
            self._tell(
                PoolAuditRecord(utc_text(at), kind.value, self._server, self._pool, user, caller, lease, token, detail)
            )

    def _told_lost(self, count: int, why: str) -> None:
        self._told(PoolEvent(PoolEventKind.AUDIT_LOST, "", f"{count} records: {why}"))
        if why == TOO_MANY:  # what fails at records would fail at this one, for ever
            self.note(AuditKind.AUDIT_LOST, "", detail=f"{count} records: {why}", caller="")
