"""The audit log: who began, took and ended which session, from where and when (ASVS 16.2).

To a function of yours (:func:`audit_to`), or to a file of JSON lines (:class:`AuditLog`), one for each web server,
because one writer can bound it: when it is full it is renamed, and the oldest is deleted. Times are UTC (RFC 3339).
A session is named by its public ID, which opens nothing and which ``coatcheck sessions show`` takes. No line holds a
token, a key or session data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.audit_lines import AuditFile, utc_text
from coatcheck.drivers.visit import visitor_address
from coatcheck.events import Event, EventKind, Observer

MAX_USER_CHARACTERS: Final = 256

_NOT_AUDITED: Final = frozenset({EventKind.BELOW_TARGET, EventKind.SESSION_HIDDEN})
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
        time=utc_text(time.time()),
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
        self._lines = AuditFile(path, max_bytes, "audit_dir", ", or audit_max_bytes 0")

    def observe(self, event: Event) -> None:
        """Write one line. A full disk is said on stderr by the logging module, and stops no request."""
        record = record_of(event, self._server)
        if record is not None:
            self._lines.write(record)

    def close(self) -> None:
        self._lines.close()
