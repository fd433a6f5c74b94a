"""Who asks: the request that is being served, for what is reported meanwhile (ASVS 16.2.1)."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

VISIT: ContextVar[MutableMapping[str, Any] | None] = ContextVar("coatcheck_visit", default=None)
"""The ASGI scope of the request, or a mapping with its ``client`` (host and port); set where requests enter."""

LOST = "coatcheck.lost"
"""The key in that mapping under which a loss that this request has met is noted."""


def visitor_address() -> str:
    """The client's address as the web server knows it, ``""`` outside of a request."""
    visit = VISIT.get()
    client = visit.get("client") if visit is not None else None
    return str(client[0]) if client else ""
