"""The token generator (mission A2, A3, A13): a browser's first token, and each next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.service.answers import demand_accepted, given
from coatcheck.service.messages import Given


class TokenGenerator:
    """Gives browsers their tokens. ``sessions``: as of :class:`coatcheck.service.validation.SessionValidator`.

    All raise :class:`SessionUnavailable` while the session servers cannot be asked, or there are too many new sessions
    of one client; :class:`AnswerRefused` for what could not be stored.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def create(
        self,
        user: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        cookie: bytes = b"",
        client: str | None = None,
        device: str = "",
        remember: bool | None = None,
        id_token: Mapping[str, Any] | None = None,
    ) -> Given:
        """A session that begins: with a ``user``, a login. One that ``cookie`` shows ends with it, and goes on in it.
        ``device``: the browser's User-Agent, which the user is shown in the list of his sessions. ``id_token``: as
        :meth:`Session.regenerate` takes it.

        Raises :class:`SessionDataError` for data that cannot be stored, :class:`ValueError` for a user's name that is
        none, and where there is neither a user nor data.
        """
        headers = [(b"user-agent", device.encode("latin-1", "replace"))] if device else []
        opened = await self._sessions.open(cookie, client, headers=headers)
        session = opened.session
        if user is None and not data and session.is_new:
            raise ValueError("a session begins with a user, or with data")
        for key, value in (data or {}).items():
            session[key] = value
        if user is not None or remember is not None or id_token is not None or not session.is_new:
            session.regenerate(user, remember=remember, id_token=id_token)
        answer = demand_accepted(await self._sessions.finish(opened, 201))
        return given(self._sessions, opened, answer)

    async def renew(self, cookie: bytes, client: str | None = None, now: bool = False) -> Given | None:
        """What a browser is to be given with the response to this request: a new token, if one is due (or ``now``), or
        nothing. Counts as activity. ``None``: it opens no session.

        Asked again with the same old token, because an answer was lost, it gives the same link of the chain (sealed
        anew), never a second one.
        """
        opened = await self._sessions.open(cookie, client)
        if opened.session.is_new:
            return None
        if now:
            opened.session.rotate()
        answer = demand_accepted(await self._sessions.finish(opened, 200))
        return given(self._sessions, opened, answer)
