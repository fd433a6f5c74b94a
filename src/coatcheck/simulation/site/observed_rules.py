"""Where the judge looks on at the rules that open and save."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from coatcheck.errors import CoatcheckError
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.requests import Requests
from coatcheck.sessions.saving import Saved
from coatcheck.simulation.application import Attempt
from coatcheck.tokens.sealed import SealedToken

ATTEMPT: ContextVar[Attempt | None] = ContextVar("attempt", default=None)
"""The request that is being served; ``None``: nobody's, as when sessions are repaired."""


class ObservedRequests(Requests):
    """What a web server does for each request; the judge sees why one could not be begun."""

    def _open_with_fresh_keys(self, opened: Opened) -> Flow[None]:
        attempt = ATTEMPT.get()
        try:
            yield from super()._open_with_fresh_keys(opened)
        except CoatcheckError as error:
            if attempt is not None:
                attempt.error = error
            raise


class ObservedLifecycle(Lifecycle):
    """The rules of one web server; the judge sees what each request opens and saves."""

    web: Any

    def open_cached(self, token: SealedToken, login: bool) -> Session | None:
        attempt, judge = ATTEMPT.get(), self.web.judge
        if attempt is None:
            return super().open_cached(token, login)
        attempt.moment = judge.moment()
        session = super().open_cached(token, login)
        if session is not None:
            judge.opened(self.web, attempt, token, session, judge.schedule.now)
        return session

    def open(self, token: SealedToken, login: bool, tries: int = 2) -> Flow[Session | None]:
        attempt, judge = ATTEMPT.get(), self.web.judge
        if attempt is None or tries != 2:  # its own second look
            return (yield from super().open(token, login, tries))
        began_at = judge.schedule.now
        judge.asking(self.web, attempt, token)
        try:
            session = yield from super().open(token, login)
        except CoatcheckError as error:
            attempt.error = error
            raise
        if session is not None and session._request.unheard:
            judge.unheard(self.web, attempt, token)
        else:
            judge.opened(self.web, attempt, token, session, began_at)
        return session

    def finish(self, session: Session) -> Saved | Flow[Saved] | Exclusive:
        saved = super().finish(session)
        if isinstance(saved, Exclusive):
            return Exclusive(saved.key, self._observed(session, saved.flow))
        return saved if isinstance(saved, Saved) else self._observed(session, saved)

    def _observed(self, session: Session, saving: Flow[Saved]) -> Flow[Saved]:
        attempt, held = ATTEMPT.get(), session._request.copy_held
        before = held.key if held is not None else None
        try:
            saved = yield from saving
        except CoatcheckError as error:
            if attempt is not None:
                attempt.error = error
            raise
        self.web.judge.saved(self.web, attempt, session, saved, before)
        return saved
