"""What coatcheck reports to operators: one flat record per event, never a secret in it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from typing import Final

import msgspec

from coatcheck.seldom import DEBUG, WARNING


class EventKind(Enum):
    """Every event that coatcheck reports; the value is its name in logs and metrics."""

    SESSION_CREATED = "session.created"
    SESSION_LOGIN = "session.login"
    SESSION_REGENERATED = "session.regenerated"
    SESSION_ROTATED = "session.rotated"
    SESSION_BOUND = "session.bound"
    PROOF_REFUSED = "session.proof_refused"
    TOKEN_REJECTED = "token.rejected"
    SESSION_NOT_FOUND = "session.not_found"
    SESSION_EXPIRED = "session.expired"
    SESSION_ROLLED_BACK = "session.rolled_back"
    SESSION_UNHEARD = "session.unheard"
    SESSION_FORKED = "session.forked"
    SESSION_THEFT = "session.theft"
    DEAD_TOKEN = "session.dead_token"
    SESSION_CLOSED = "session.closed"
    LOGIN_REFUSED = "session.login_refused"
    USER_CLOSED = "user.closed"
    ALL_CLOSED = "sessions.all_closed"
    SESSION_HANDED_OVER = "session.handed_over"
    HAND_OFF_REFUSED = "hand_off.refused"
    HAND_OFF_REPLAYED = "hand_off.replayed"
    SIGNAL_TAKEN = "signal.taken"
    SIGNAL_REFUSED = "signal.refused"
    SIGNAL_LOST = "signal.lost"
    SESSION_HIDDEN = "session.hidden"
    CLOSE_INCOMPLETE = "session.close_incomplete"
    SESSION_LIMITED = "session.limited"
    SERVERS_FULL = "copies.servers_full"
    BELOW_TARGET = "copies.below_target"
    EARLY_WRITE_LOST = "copies.early_write_lost"
    CORRUPT_ENTRY = "copies.corrupt_entry"
    CLOCK_DEVIATES = "clock.deviates"
    CLOCK_AGREES = "clock.agrees"


_QUIET: Final = frozenset(
    {
        EventKind.SESSION_CREATED,
        EventKind.SESSION_LOGIN,
        EventKind.SESSION_REGENERATED,
        EventKind.SESSION_ROTATED,
        EventKind.SESSION_BOUND,
        EventKind.PROOF_REFUSED,
        EventKind.SESSION_HANDED_OVER,
        EventKind.HAND_OFF_REFUSED,
        EventKind.SESSION_EXPIRED,
        EventKind.SESSION_CLOSED,
        EventKind.LOGIN_REFUSED,
        EventKind.USER_CLOSED,
        EventKind.SIGNAL_TAKEN,
        EventKind.TOKEN_REJECTED,
        EventKind.BELOW_TARGET,
    }
)
"""What happens all day: counted, and in the audit log, but nothing that an operator must look at."""


class Event(msgspec.Struct, frozen=True):
    """``session`` is :func:`public_id` of the session's key; the key itself stays in the farm. ``user`` is whom the app
    named at the login; any text, also a hostile one."""

    kind: EventKind
    session: str = ""
    detail: str = ""
    user: str = ""

    @property
    def logger(self) -> str:
        return "coatcheck.sessions"

    @property
    def level(self) -> int:
        return DEBUG if self.kind in _QUIET else WARNING

    @property
    def event(self) -> str:
        return self.kind.value

    @property
    def line(self) -> str:
        return f"{self.kind.value} session={self.session or '-'} {self.detail}"

    @property
    def flood(self) -> str:
        return self.kind.value


LOSSES = frozenset({EventKind.SESSION_NOT_FOUND, EventKind.SESSION_ROLLED_BACK})
"""What ends a session that nobody ended: the app may tell its visitor."""


Observer = Callable[[Event], None]


def both(first: Observer, second: Observer) -> Observer:
    """An observer that tells two, one after the other."""

    def observe(event: Event) -> None:
        first(event)
        second(event)

    return observe


PUBLIC_ID_BYTES = 6


def public_id(key: bytes) -> str:
    """The name of a session in logs: 12 hex digits of a hash, so that a log opens no session (ASVS 16.2.5)."""
    return blake2b(key, digest_size=PUBLIC_ID_BYTES, person=b"coatcheck-log").hexdigest()
