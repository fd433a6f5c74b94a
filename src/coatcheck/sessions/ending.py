"""Whether a session that something open depends on is still alive (mission N4; protocol section 9).

Nothing is claimed or written here: a WebSocket that only listens must not take a session away from the web server
that its browser's requests go to.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

import msgspec

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Flow
from coatcheck.replication.view import View
from coatcheck.sessions.record import decode_record

OpenStreams = Literal["end", "tell"]
"""What happens to what is open when its session ends: it is ended, or the app is told and decides."""


class SessionEnd(Enum):
    """Why a session is over; the value is its name in logs."""

    CLOSED = "closed"
    """By a logout, a login (which makes a new session), an operator, or theft."""
    EXPIRED = "expired"
    """The idle or the absolute timeout has passed."""
    LOST = "lost"
    """No session server has it any more, though it should still live."""
    UNKNOWN = "unknown"
    """No session server has answered for so long that nobody can say."""


class Alive(msgspec.Struct, frozen=True):
    """Monotonic seconds: nobody need be asked before ``sure_until``; at ``expires_at`` it is over unless it is used."""

    sure_until: float
    expires_at: float


def known_alive(copies: Copies, key: bytes) -> Alive | None:
    """What a lease says without asking anyone: no other web server can have closed the session meanwhile."""
    copy = copies.cache.get(key)
    now = copies.world.monotonic()
    if copy is None or (sure_until := copies.leased_until(copy)) <= now:
        return None
    return Alive(sure_until, now + (copy.expires_at - copies.world.now_ms()) / 1000)


def look(copies: Copies, key: bytes, closed_before: int = 0) -> Flow[Alive | SessionEnd]:
    """Ask the session servers. ``closed_before``: when everybody's sessions were closed (Unix ms).

    Raises :class:`SessionUnavailable` when too few of them answer.
    """
    if copies.cache.is_closed(key):
        return SessionEnd.CLOSED
    view: View = yield from copies.viewer.look(key)
    newest = view.newest
    if newest is not None and newest.final:
        copies.cache.mark_closed(key)
        return SessionEnd.CLOSED
    if not copies.viewer.enough_answered(view):
        raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
    if newest is None or newest.closed:
        if copies.viewer.missing(view):
            raise SessionUnavailable(UnavailableReason.UNHEARD)  # who does not answer may have it
        return SessionEnd.LOST if newest is None else SessionEnd.EXPIRED
    if closed_before and decode_record(view.body).created_at <= closed_before:
        return SessionEnd.CLOSED
    left_s = _left_ms(copies, view) / 1000
    return Alive(view.sent_at, view.sent_at + left_s) if left_s > 0 else SessionEnd.EXPIRED


def _left_ms(copies: Copies, view: View) -> int:
    """Until the newest copy expires, by the session servers' clocks: a wrong one of our own ends nobody's stream."""
    assert view.newest is not None
    newest = view.newest.version
    stored = [entry.expires_in_ms for entry in view.entries.values() if entry.version == newest]
    if stored:
        return max(stored) - copies.policy.linger_ms
    assert view.cached is not None
    return view.cached.expires_at - copies.world.now_ms()
