"""One request's session, from its opening to the end of its response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.sessions.answer import CookieTransport
from coatcheck.sessions.mapping import Session

NOT_OPEN = Session()
"""In the place of a session that is being loaded; no app sees it."""


class Phase(Enum):
    """How far a request has come; each step is taken once, in this order."""

    OPENING = "opening"
    OPEN = "open"
    FINISHED = "finished"
    ENDED = "ended"
    """Nothing is stored for it any more: its response is complete, or was refused."""


class Opened(msgspec.Struct):
    """What ``open`` returns and ``finish`` and ``end`` take; :attr:`session` is the app's dict.

    ``home``: whose sessions these are; ``cookie_header``: what the browser showed; ``client``: the host that asked, if
    the server knows it; ``method`` and ``headers``: the request's own, if the adapter says them.
    """

    home: Any
    cookie_header: bytes
    client: str | None
    transport: CookieTransport
    method: str = ""
    headers: Iterable[Sequence[bytes]] = ()
    phase: Phase = Phase.OPENING
    session: Session = NOT_OPEN
    failed: bool = False
    """Whether what the request did is not kept: it failed half-way, or cannot be stored."""
    closed: bool = False
    """Whether this very response closed its session: it may well say good-bye in many pieces."""
    lost: str | None = None
    """The loss that was reported while the session servers were asked for it, if any."""

    @property
    def key(self) -> bytes | None:
        """The session's key once it exists anywhere; ``None`` for one that nothing was stored in."""
        held = self.session._request.copy_held
        return None if held is None else held.key

    def give_up(self) -> None:
        """Finishing it has failed or was cancelled: the app's own error page may be finished, without a session."""
        if self.phase is Phase.FINISHED:
            self.phase, self.failed = Phase.OPEN, True

    def demand(self, phase: Phase, what: str) -> None:
        """Raises :class:`CoatcheckError`, a fault of the adapter, if this is not the turn of ``what``."""
        if self.phase is not phase:
            raise CoatcheckError(f"{what}: this request should be {phase.value}, and is {self.phase.value}")
