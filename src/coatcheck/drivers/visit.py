"""Who asks: the request that the session servers are asked for, for what is reported meanwhile (ASVS 16.2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Visit(Protocol):
    """A request that is under way: :class:`coatcheck.sessions.opened.Opened` is one."""

    client: str | None
    """The host that asked."""
    lost: str | None
    """The loss that the request has met, if any."""


class _Client:
    """A visit of which no more than the host is known."""

    __slots__ = ("client", "lost")

    def __init__(self, client: str | None) -> None:
        self.client = client
        self.lost: str | None = None


VISIT: ContextVar[Visit | None] = ContextVar("coatcheck_visit", default=None)
"""Set while session servers are asked or an event is reported; what is served from here asks and reports nothing."""


@contextmanager
def visiting(client: str | None) -> Iterator[Visit]:
    """What is reported within is of this client."""
    visit = _Client(client)
    before = VISIT.set(visit)
    try:
        yield visit
    finally:
        VISIT.reset(before)


def visitor_address() -> str:
    """The client's address as the web server knows it, ``""`` outside of a request."""
    visit = VISIT.get()
    return visit.client or "" if visit is not None else ""
