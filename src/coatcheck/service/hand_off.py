"""Hand-offs for servers that ask over HTTP (mission A1, A9, A11): the same flow as for our own web servers."""

from __future__ import annotations

from typing import Final, Literal

from coatcheck.drivers.hand_off_desk import HandOffDesk
from coatcheck.drivers.sessions import Sessions
from coatcheck.hand_off.rules import Go, Pass, Refuse
from coatcheck.service.answers import AnswerRefused
from coatcheck.service.messages import HandedOff
from coatcheck.sessions.answer import Answer

_NOT_TOLD: Final = ("location", "set-cookie", "content-length")
"""Headers that have a place of their own, and the one that the caller's server writes itself."""


class SiteCrossings:
    """``sessions``: what :func:`coatcheck.connect` returns, with ``sites``."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._desk = HandOffDesk(sessions.cookies, sessions.transport)

    async def answer(
        self, cookie: bytes, method: str, path: str, query: str, *, cross_site: bool = False, client: str | None = None
    ) -> HandedOff | None:
        """What is to become of a request; ``None``: there are no sites.

        Raises :class:`SessionUnavailable` and :class:`AnswerRefused` while the session servers cannot be reached.
        """
        hand_offs = self._sessions.hand_offs
        if hand_offs is None:
            return None
        if not hand_offs.concerns(path, query):
            return _served(path, query)
        opened = await self._sessions.open(cookie, client)
        found = await self._desk.ask(hand_offs, opened, method, path, query, cross_site=cross_site)
        if isinstance(found, Pass):
            return _served(path, found.query)
        if isinstance(found, Refuse):
            return _told(self._desk.refusal(found), "refuse")
        answer = await self._desk.redirect(opened, found) if isinstance(found, Go) else found
        if answer.refused:
            raise AnswerRefused(answer)
        return _told(answer, "redirect")


def _served(path: str, query: str) -> HandedOff:
    return HandedOff("serve", 200, f"{path}?{query}" if query else path, "", [], {})


def _told(answer: Answer, todo: Literal["redirect", "refuse"]) -> HandedOff:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers]
    return HandedOff(
        todo,
        answer.status,
        next((value for name, value in headers if name == "location"), ""),
        answer.refused,
        [value for name, value in headers if name == "set-cookie"],
        {name: value for name, value in headers if name not in _NOT_TOLD},
    )
