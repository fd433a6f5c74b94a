"""The sessions that one server of the provider holds, bounded, with a limit for each user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.soap_provider.rules import ProviderSessionState
from coatcheck.soap_provider.session_types import SessionType

MAX_SESSIONS: Final = 10_000
MAX_CHANGES: Final = 100
"""Uncommitted changes that one session may hold."""
SESSION_ID_BYTES: Final = 16


@dataclass(slots=True, eq=False)
class ProviderSession:
    """One open session. ``seen_at``: Unix ms. ``changes``: account name to uncommitted note."""

    id: bytes
    username: str | None
    seen_at: int
    session_type: SessionType = SessionType.NONE
    busy: bool = True
    newest: int = 0
    requests: int = 0
    changes: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> ProviderSessionState:
        return ProviderSessionState(self.busy, self.newest)


class SessionTable:
    """Open sessions by ID, and how many each user has.

    A session counts from the moment at which its login starts. Idle ones are closed after ``idle_s``.
    """

    def __init__(self, idle_s: float, random_bytes: Callable[[int], bytes]) -> None:
        self.idle_s = idle_s
        self._random_bytes = random_bytes
        self._sessions: dict[bytes, ProviderSession] = {}
        self._count: dict[str, int] = {}
        self._sweep_at = 0
        self.peak_per_user = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: bytes, now: int) -> ProviderSession | None:
        """The session, if it is open."""
        session = self._sessions.get(session_id)
        if session is not None and not session.busy and now - session.seen_at >= self.idle_s * 1000:
            self.close(session)
            return None
        return session

    def open(self, username: str | None, per_user: int, now: int) -> ProviderSession:
        """A new session, in use; ``per_user``: how many a user may have at once.

        Raises:
            SoapFault: the user, or the server, has too many.
        """
        if now >= self._sweep_at or len(self._sessions) >= MAX_SESSIONS or self.count(username) >= per_user:
            self._sweep(now)
        if len(self._sessions) >= MAX_SESSIONS:
            raise SoapFault(FaultReason.SERVER_BUSY, f"the server has {MAX_SESSIONS} sessions; try later")
        if username is not None:
            if self.count(username) >= per_user:
                raise SoapFault(FaultReason.TOO_MANY_SESSIONS, f"the user has {per_user} sessions open; no more")
            self._count[username] = self.count(username) + 1
            self.peak_per_user = max(self.peak_per_user, self._count[username])
        session = ProviderSession(self._random_bytes(SESSION_ID_BYTES), username, now)
        self._sessions[session.id] = session
        return session

    def close(self, session: ProviderSession) -> None:
        """Close it; closing twice is nothing."""
        if self._sessions.pop(session.id, None) is None or session.username is None:
            return
        left = self._count[session.username] - 1
        if left:
            self._count[session.username] = left
        else:
            del self._count[session.username]

    def count(self, username: str | None) -> int:
        """How many open sessions the user has."""
        return 0 if username is None else self._count.get(username, 0)

    def of(self, username: str | None) -> list[ProviderSession]:
        """The open sessions of a user, or all."""
        return [each for each in self._sessions.values() if username is None or each.username == username]

    def counts(self) -> dict[str, int]:
        """Open sessions by user."""
        return dict(self._count)

    def _sweep(self, now: int) -> None:
        """Close what is idle for too long."""
        self._sweep_at = now + int(self.idle_s * 250)
        for session in [each for each in self._sessions.values() if not each.busy]:
            if now - session.seen_at >= self.idle_s * 1000:
                self.close(session)
