"""Which session a client offers to which server (mission C11, C12). Pure: the time is given.

A resumed server shows no certificate: that it has the session's secret must prove as much as its certificate would. So
a session is offered to the host that it was made with, and beyond it only to hosts that its user calls related, and
that the certificate which was checked when it was made covers as well. One of TLS 1.3 is offered once (RFC 8446
appendix C.4), one of TLS 1.2 as often as it lasts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.tls.hosts import as_host

MAX_PLACES: Final = 256
"""Servers, or families of them, whose sessions are kept; of more, those that were used longest ago are dropped."""
MAX_SESSIONS: Final = 4
"""Kept of one place: so many connections at once can resume."""


class KeptSession(msgspec.Struct, frozen=True):
    """A session as a client keeps it."""

    session: Any
    host: str
    names: tuple[str, ...]
    """The DNS names of the certificate that was checked when it was made."""
    expires_at: float
    """Unix seconds."""
    once: bool
    """Whether it may be offered once only: TLS 1.3."""


class Offers:
    """What one client keeps, and for whom. ``related``: domains whose hosts belong together, such as
    ``shop.example``. Raises :class:`ConfigError` for what is none, as a whole top-level domain."""

    def __init__(self, related: Iterable[str] = ()) -> None:
        self._domains = tuple(_domain(one) for one in ([related] if isinstance(related, str) else related))
        self._kept: OrderedDict[tuple[str, int], deque[KeptSession]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def keep(self, port: int, kept: KeptSession) -> None:
        """A session was made with ``kept.host``."""
        place = self._place(kept.host, port)
        sessions = self._kept.setdefault(place, deque(maxlen=MAX_SESSIONS))
        if not kept.once:
            sessions.clear()  # the same one again, or one that takes its place
        sessions.append(kept)
        self._kept.move_to_end(place)
        while len(self._kept) > MAX_PLACES:
            self._kept.popitem(last=False)

    def offer(self, host: str, port: int, now: float) -> Any:
        """The session to offer to this server, the newest that may be; ``None`` if there is none."""
        place = self._place(host, port)
        sessions = self._kept.get(place)
        if sessions is None:
            return None
        self._kept.move_to_end(place)
        for kept in [one for one in sessions if one.expires_at <= now]:
            sessions.remove(kept)
        for kept in reversed(sessions):
            if kept.host == host or covers(kept.names, host):
                if kept.once:
                    sessions.remove(kept)
                return kept.session
        return None

    def forget(self, host: str, port: int) -> None:
        """This server has refused what it was offered, and so would its relatives."""
        self._kept.pop(self._place(host, port), None)

    def _place(self, host: str, port: int) -> tuple[str, int]:
        for domain in self._domains:
            if host == domain or host.endswith("." + domain):
                return "." + domain, port
        return host, port


def covers(names: Sequence[str], host: str) -> bool:
    """Whether a certificate with these DNS names is one of ``host`` (RFC 9525 section 6.3: a star stands for one whole
    label, the first)."""
    parent = host.partition(".")[2]
    return any(
        name == host or (name.startswith("*.") and parent and name[2:] == parent) for name in map(as_host, names)
    )


def _domain(text: str) -> str:
    domain = as_host(text) if isinstance(text, str) else ""
    if not domain or "." not in domain.strip(".") or domain.startswith(("*", ".")):
        raise ConfigError(f"related: a domain such as shop.example (got {text!r})")
    return domain
