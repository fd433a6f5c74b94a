"""The validation component (mission A6, A13): does this token open a session, and whose?"""

from __future__ import annotations

from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.description import LiveSession, describe


class SessionValidator:
    """Verifies what browsers show against the session servers. Changes nothing: no token, no timeout.

    ``sessions``: what :func:`coatcheck.connect` returns, with the farm's key, name and session servers.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def verify(self, cookie: bytes, client: str | None = None) -> LiveSession | None:
        """The live session of a Cookie header; ``None``: none is shown, or what is shown opens none (forged, expired,
        closed, dead). A dead token that comes back ends its session, as anywhere (protocol section 7).

        Raises :class:`SessionUnavailable` while it cannot be known.
        """
        opened = await self._sessions.open(cookie, client)
        return describe(opened.session, self._sessions.lifecycle.policy)
