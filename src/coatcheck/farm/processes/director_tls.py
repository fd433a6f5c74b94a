"""How one director worker speaks TLS: its certificate, and the sessions that it shares with the other workers."""

from __future__ import annotations

import ssl
import time
from typing import Any

from coatcheck.errors import ConfigError
from coatcheck.farm.control.channel import Message
from coatcheck.farm.plan.roles import DirectorRole, TicketOrders
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tls.tickets import SharedTickets
from coatcheck.tls.told_keys import ToldKeys


class DirectorTls:
    """The TLS of one director worker; raises :class:`ConfigError` for files that cannot be loaded."""

    def __init__(self, role: DirectorRole) -> None:
        self.context = tls_context(role.tls_certificate, role.tls_key)
        self._keys: ToldKeys | None = None
        self._tickets: SharedTickets | None = None
        if role.tickets is not None:
            self._keys = _keys_of(role.tickets)
            self._tickets = SharedTickets(self.context, self._keys, role.tickets.farm)

    @property
    def why_off(self) -> str:
        """Why sessions are not shared though they should be; empty if all is well."""
        return self._tickets.why_off if self._tickets is not None else ""

    async def tell_tickets(self, message: Message) -> dict[str, Any]:
        """Seal and open with these keys from now on."""
        if self._keys is None:
            raise ConfigError("this director shares no ticket keys")
        given = message["keys"]
        self._keys.tell({int(period): [bytes.fromhex(one) for one in secrets] for period, secrets in given.items()})
        return {}

    def status(self) -> dict[str, Any]:
        """Handshakes that were completed since the start, how many of them resumed a session, and how they share."""
        seen = self.context.session_stats()
        sharing = self._tickets.status() if self._tickets is not None else {"active": False}
        return {"handshakes": seen["accept_good"], "resumed": seen["hits"], **sharing, "why_off": self.why_off}


def _keys_of(orders: TicketOrders) -> ToldKeys:
    keys = ToldKeys(TicketKeys(orders.period_ms, orders.lifetime_ms, Siblings()), lambda: time.time_ns() // 1_000_000)
    keys.tell(dict(orders.keys))
    return keys


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """What the director speaks HTTPS with.

    Raises:
        ConfigError: the two files cannot be loaded, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password: a locked key must fail, not ask a terminal that nobody watches.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        files = f"{certificate} with tls_key {key}"
        raise ConfigError(f"tls_certificate: cannot load {files}: {reason}; name two PEM files") from None
    return context
