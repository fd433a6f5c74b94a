"""Who asks: the request that the session servers are asked for, for what is reported meanwhile (ASVS 16.2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Visit:
    """``client``: the host that asked; ``lost``: the loss that its request has met, if any."""

    __slots__ = ("client", "lost")

    def __init__(self, client: str | None) -> None:
        self.client = client
        self.lost: str | None = None


VISIT: ContextVar[Visit | None] = ContextVar("coatcheck_visit", default=None)
"""Set while session servers are asked or an event is reported; what is served from here asks and reports nothing."""


@contextmanager
def visiting(client: str | None) -> Iterator[Visit]:
    """What is reported within is of this client."""
    visit = Visit(client)
    before = VISIT.set(visit)
    try:
        yield visit
    finally:
        VISIT.reset(before)


def visitor_address() -> str:
    """The client's address as the web server knows it, ``""`` outside of a request."""
    visit = VISIT.get()
    return visit.client or "" if visit is not None else ""
