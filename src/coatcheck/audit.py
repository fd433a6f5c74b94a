"""The audit log: who began, took and ended which session, from where and when (ASVS 16.2).

To a function of yours (:func:`audit_to`), or to a file of JSON lines (:class:`AuditLog`), one for each web server,
because one writer can bound it: when it is full it is renamed, and the oldest is deleted. Times are UTC (RFC 3339).
A session is named by its public ID, which opens nothing and which ``coatcheck sessions show`` takes. No line holds a
token, a key or session data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.drivers.visit import visitor_address
from coatcheck.errors import ConfigError
from coatcheck.events import Event, EventKind, Observer

SUFFIX: Final = ".jsonl"
FILES: Final = 4
"""The file that is written and the older ones beside it (``.1`` is the newest of those)."""

MAX_USER_CHARACTERS: Final = 256

_NOT_AUDITED: Final = frozenset({EventKind.BELOW_TARGET, EventKind.REPAIRED, EventKind.SESSION_HIDDEN})
"""About copies and apps; the log and the counters have them."""


class AuditRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. ``address``: the client's, as far as proxies are trusted; empty where no request was at hand."""

    time: str
    event: str
    server: str
    session: str = ""
    user: str = ""
    address: str = ""
    detail: str = ""


def audit_to(tell: Callable[[AuditRecord], None], server: str = "") -> Observer:
    """An observer for :func:`coatcheck.connect`, which calls ``tell`` with a record of each event that concerns a
    session, a user or a token, while requests wait. ``server``: this web server's name."""

    def observe(event: Event) -> None:
        if (record := record_of(event, server)) is not None:
            tell(record)

    return observe


def record_of(event: Event, server: str) -> AuditRecord | None:
    """What is to be kept of an event, in the name of the client that asks just now; ``None``: nothing.

    A user's name may be any text: whoever prints it has to escape it, as :class:`AuditLog` does.
    """
    if event.kind in _NOT_AUDITED:
        return None
    return AuditRecord(
        time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        event=event.kind.value,
        server=server,
        session=event.session,
        user=event.user[:MAX_USER_CHARACTERS],
        address=visitor_address(),
        detail=event.detail,
    )


class AuditLog:
    """Writes a line for each event that concerns a session or a token."""

    def __init__(self, path: Path, max_bytes: int, server: str) -> None:
        """Raises :class:`ConfigError` if the file cannot be written."""
        self._server = server
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._file = RotatingFileHandler(path, maxBytes=max_bytes // FILES, backupCount=FILES - 1, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"audit_dir: {path}: {error.strerror}; choose another, or audit_max_bytes 0") from None

    def observe(self, event: Event) -> None:
        """Write one line. A full disk is said on stderr by the logging module, and stops no request."""
        record = record_of(event, self._server)
        if record is None:
            return
        line = json.dumps(msgspec.to_builtins(record))  # ASCII alone: a user's name steers no terminal
        self._file.handle(logging.LogRecord("coatcheck.audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._file.close()
