"""Requests that go from site to site, for any front: what a browser is answered (protocol section 12)."""

from __future__ import annotations

from typing import Final

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConflictError, SessionUnavailable
from coatcheck.hand_off.rules import Go, HandOffs, Pass, Refuse, SiteVisit
from coatcheck.sessions.answer import Answer, CookieTransport
from coatcheck.sessions.cookies import CookieJar, CookiePolicy
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.routes import Header

GUARDS: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"))
"""Of every answer that is not the app's: what its URL carries is for nobody else."""


class HandOffDesk:
    """``cookies``, ``transport``: as this front keeps its sessions in browsers."""

    def __init__(self, cookies: CookiePolicy, transport: CookieTransport) -> None:
        self._transport = transport
        self._binder = CookieJar(cookies.for_whole_host(), "-binder")

    async def ask(
        self, hand_offs: HandOffs, opened: Opened, method: str, path: str, query: str, *, cross_site: bool
    ) -> Pass | Go | Refuse | Answer:
        """What to do with a request; ``path`` and ``query`` as they were sent, ``cross_site``: whether its browser says
        that another site has caused it. An :class:`Answer` is a refusal: the session servers cannot be reached."""
        request = opened.session._request
        visit = SiteVisit(
            method=method,
            path=path,
            query=query,
            session=request.shown if request.copy_held is not None else None,
            login=request.login,
            binder=self._binder.read(opened.cookie_header),
            cross_site=cross_site,
        )
        sessions: Sessions = opened.home
        try:
            return await sessions.run_for(opened, hand_offs.answer(visit))
        except (SessionUnavailable, ConflictError) as error:
            return Answer.refusal(error)

    async def redirect(self, opened: Opened, go: Go) -> Answer:
        """The response that sends a browser on, refused if what it did to its session cannot be saved."""
        sessions: Sessions = opened.home
        headers: list[Header] = [(b"location", go.location.encode("latin-1")), (b"content-length", b"0")]
        if go.binder is not None:
            headers.append(self._binder.set_cookie(go.binder))
        if go.issue is not None:
            headers += self._transport.arrival(
                go.issue, sessions.remembers(go.issue), opened.cookie_header, sessions.seal
            )
        else:
            # What this request did to its own session, as a rotation, is stored and told as with any answer.
            answer = await sessions.finish(opened, go.status, headers)
            if answer.refused:
                return answer
            headers = list(answer.headers)
        return Answer(go.status, [one for one in headers if one[0] not in dict(GUARDS)] + list(GUARDS))

    @staticmethod
    def refusal(refuse: Refuse) -> Answer:
        """The response that says why neither the app nor another site answers."""
        return Answer(refuse.status, list(GUARDS), refused=refuse.why)
