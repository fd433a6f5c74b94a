"""One request's session, from its opening to the end of its response."""

from __future__ import annotations

from enum import Enum
from typing import Any

from coatcheck.errors import CoatcheckError
from coatcheck.sessions.answer import CookieTransport
from coatcheck.sessions.mapping import Session


class Phase(Enum):
    """How far a request has come; each step is taken once, in this order."""

    OPENING = "opening"
    OPEN = "open"
    FINISHED = "finished"
    ENDED = "ended"
    """Nothing is stored for it any more: its response is complete, or was refused."""


class Opened:
    """What ``open`` returns and ``finish`` and ``end`` take; :attr:`session` is the app's dict.

    ``home``: whose sessions these are; ``client``: the host that asked, if the server knows it.
    """

    __slots__ = ("client", "closed", "cookie_header", "failed", "home", "phase", "session", "transport")

    session: Session

    def __init__(self, home: Any, cookie_header: bytes, client: str | None, transport: CookieTransport) -> None:
        self.home = home
        self.cookie_header = cookie_header
        self.client = client
        self.transport = transport
        self.phase = Phase.OPENING
        self.failed = False
        """Whether what the request did is not kept: it failed half-way, or cannot be stored."""
        self.closed = False
        """Whether this very response closed its session: it may well say good-bye in many pieces."""

    def __getattr__(self, name: str) -> Any:
        if name == "session":
            raise CoatcheckError("this request's session is not open yet: wait for open() to return it")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def key(self) -> bytes | None:
        """The session's key once it exists anywhere; ``None`` for one that nothing was stored in."""
        held = self.session._request.copy_held
        return None if held is None else held.key

    def demand(self, phase: Phase, what: str) -> None:
        """Raises :class:`CoatcheckError`, a fault of the adapter, if this is not the turn of ``what``."""
        if self.phase is not phase:
            raise CoatcheckError(f"{what}: this request is {self.phase.value} already, or not yet {phase.value}")
