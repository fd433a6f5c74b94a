"""TLS sessions in tickets that any server of the farm opens: keys that all of them agree on, and change alike.

The second way to share sessions. Nothing is stored for a session and nothing is asked in a handshake; but a ticket is
not taken: whoever has recorded one may show it again, as often as he likes, while it lives. So a server must not let it
mean more than that its holder has the session's keys (RFC 8446 section 8), and early data stays off.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from typing import Final, Protocol

import msgspec

from coatcheck.seldom import Seldom
from coatcheck.tls.demands import Demands
from coatcheck.tls.doors import door_of
from coatcheck.tls.hosts import as_host
from coatcheck.tls.openssl import OpenSslRefused, TicketSecrets
from coatcheck.tls.ticket_keys import OpeningKey, TicketKey

FIRST_ROUND_S: Final = 1.0
"""How long a start waits for the stores, so that the first handshakes are shared already."""

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)


class TicketCounts(msgspec.Struct):
    """What became of tickets since the start of this process."""

    made: int = 0
    """Tickets that were sealed with a key of the farm."""
    alone: int = 0
    """Tickets that only this process opens, because it knows no key of the farm."""
    opened: int = 0
    refused: int = 0
    """Of no key that is known here for this host: another farm's, or too old. A full handshake."""


class KeySource(Protocol):
    """Where a process has its keys from: it agrees on them (:mod:`coatcheck.tls.agreement`), or is told
    (:mod:`coatcheck.tls.told_keys`)."""

    @property
    def life_s(self) -> int:
        """How long a ticket lives at most."""
        ...

    def start(self, wait_s: float) -> None:
        """Begin; waits so long at most for the first keys."""
        ...

    def close(self) -> None:
        """Learn no more."""
        ...

    def sealing(self, host: str) -> TicketKey | None:
        """The key for a new ticket; ``None`` if none of the farm is known."""
        ...

    def opening(self, name: bytes, host: str) -> OpeningKey | None:
        """The key of that name, if a ticket of it may be opened for this host."""
        ...

    def status(self) -> dict[str, object]:
        """What is known, for operators."""
        ...


class SharedTickets:
    """The tickets of one context; made by :func:`coatcheck.tls.share_ticket_keys`.

    Nothing here ever fails a handshake: whatever goes wrong is a full handshake, and is counted.
    """

    def __init__(self, context: ssl.SSLContext, source: KeySource, farm: str) -> None:
        self.counts = TicketCounts()
        self.why_off = ""
        """Why nothing is shared, in words; empty if all is well."""
        self._source = source
        self._demands = Demands(context, farm)
        self._alone = TicketSecrets(os.urandom(16), os.urandom(32), os.urandom(32))
        try:
            door_of(context).share_tickets(self, self._demands.name, source.life_s)
        except OpenSslRefused as refused:
            self.why_off = str(refused)
            return
        context.options &= ~ssl.OP_NO_TICKET
        source.start(FIRST_ROUND_S)

    @property
    def active(self) -> bool:
        """Whether tickets are shared."""
        return not self.why_off

    def status(self) -> dict[str, object]:
        """For operators: whether it is on, the counts, which periods' keys are known, and which stores answer."""
        counts: dict[str, object] = msgspec.to_builtins(self.counts)
        return {"active": self.active, **counts, **self._source.status()}

    def close(self) -> None:
        """Ask the stores no more, and open and seal nothing for others."""
        self.why_off = self.why_off or "closed"
        self._source.close()

    # -- what OpenSSL asks, in the middle of a handshake -------------------------------------------

    def sealing_key(self, host: bytes) -> TicketSecrets:
        """A key of the farm; if none is known, one that nobody else has: a handshake without any could not end."""
        try:
            if self.active and not self._demands.are_others():
                key = self._source.sealing(as_host(host))
                if key is not None:
                    self.counts.made += 1
                    return TicketSecrets(*key)
        except Exception as wrong:  # noqa: BLE001 - whatever it is, the handshake goes on, and it is reported
            self._report(wrong)
        self.counts.alone += 1
        return self._alone

    def opening_key(self, name: bytes, host: bytes) -> tuple[TicketSecrets, bool] | None:
        """The key of this ticket, and whether it is to be replaced."""
        try:
            if not self.active or self._demands.are_others():
                return None
            found = self._source.opening(name, as_host(host))
            if found is None:
                self.counts.refused += 1
                return None
            self.counts.opened += 1
            return TicketSecrets(*found.key), found.is_old
        except Exception as wrong:  # noqa: BLE001 - as above
            self._report(wrong)
            return None

    def _report(self, wrong: Exception) -> None:
        _seldom.write(logging.ERROR, "sharing of TLS tickets failed: %r", wrong, kind="failed")
