"""What a caller does to a session besides renewing it: change its data, end it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConflictError, SessionUnavailable, UnavailableReason
from coatcheck.service.answers import cookie_lines, demand_accepted, given
from coatcheck.service.messages import ClosedSession, ClosedUser, Given, SessionOfUser
from coatcheck.sessions.description import demand_version


class SessionChanges:
    """Raises what :class:`coatcheck.service.token_generator.TokenGenerator` does."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def update(
        self,
        cookie: bytes,
        set_keys: Mapping[str, Any],
        delete_keys: Iterable[str] = (),
        *,
        version: str | None = None,
        client: str | None = None,
    ) -> Given | None:
        """A delta of the data; it counts as activity. ``None``: the cookie opens no session.

        Raises :class:`ConflictError` if the data is not of this ``version`` any more, and :class:`SessionDataError` for
        what cannot be stored.
        """
        opened = await self._sessions.open(cookie, client)
        session = opened.session
        if session.is_new:
            return None
        if version is not None and not demand_version(session, self._sessions.lifecycle.policy, version):
            raise ConflictError("the session's data is of another version")
        for key in delete_keys:
            session.pop(key, None)
        session.update(set_keys)
        answer = demand_accepted(await self._sessions.finish(opened, 200))
        return given(self._sessions, opened, answer)

    async def close(self, cookie: bytes, client: str | None = None) -> ClosedSession:
        """End the session on every server (a logout). Of one that is over already nothing is left to do."""
        opened = await self._sessions.open(cookie, client)
        existed = not opened.session.is_new
        opened.session.close()
        answer = demand_accepted(await self._sessions.finish(opened, 200))
        return ClosedSession(existed, cookie_lines(answer))

    async def sessions_of(self, user: str) -> list[SessionOfUser]:
        """The sessions of a user, the oldest first; no scan, and nothing changes."""
        return [
            SessionOfUser(one.id, one.device, one.address, one.logged_in_at, one.last_seen_at)
            for one in await self._sessions.sessions_of(user)
        ]

    async def close_user(self, user: str, but_cookie: bytes = b"", client: str | None = None) -> ClosedUser | None:
        """End all sessions of a user, but the one of this Cookie header (ASVS 7.4.2, 7.4.3). ``None``: the header opens
        no session of the user; nothing was closed.

        Raises :class:`SessionUnavailable` while somebody might still be served; then repeat it.
        """
        but: bytes | None = None
        if but_cookie:
            opened = await self._sessions.open(but_cookie, client)
            but = opened.key
            if but is None or opened.session.user != user:
                return None
        closed = await self._sessions.close_user(user, but)
        if not closed.effective:
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
        return ClosedUser(closed.closed)
