"""The steps of the middleware, over bare flows."""

from __future__ import annotations

import msgspec

from coatcheck.hand_off.rules import Pass, Refuse, SiteVisit
from coatcheck.replication.effects import Flow, Pause, as_flow
from coatcheck.sessions.answer import cookie_changes
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.saving import Saved
from coatcheck.simulation.application import Attempt, Response, act
from coatcheck.simulation.bare.web_server import ModelWebServer
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.sealing import Codecs
from coatcheck.tokens.sealed import SealedToken


class App:
    """Handles attempts; the ledger sees what was opened and saved."""

    def __init__(self, judge: Ledger, codecs: Codecs) -> None:
        self._judge = judge
        self._codecs = codecs

    def handle(self, attempt: Attempt, web: ModelWebServer, think_s: float) -> Flow[Response]:
        if attempt.kind == "close_all":
            yield from self._close_all(web)
            return Response()
        session = yield from self._open(attempt, web)
        attempt.session = session
        if attempt.visit is not None and web.hand_offs is not None:
            there = yield from self._travel(attempt, attempt.visit, web, session)
            if there.go is not None or there.status != 200:
                return there
        if think_s:
            yield Pause(think_s)
        act(attempt, session)
        if attempt.kind in ("close_user", "close_others"):
            yield from self._close_sessions(attempt, web, session)
        before = session._request.copy_held.key if session._request.copy_held is not None else None
        saved = web.lifecycle.finish(session)
        if not isinstance(saved, Saved):
            saved = yield from as_flow(saved)
            self._judge.saved(web, attempt, session, saved, before)
        return self._respond(attempt, web, session, saved)

    def _close_sessions(self, attempt: Attempt, web: ModelWebServer, session: Session) -> Flow[None]:
        """The page of a user who ends all sessions, or all others."""
        copy, users, user = session._request.copy_held, web.lifecycle.users, session.user
        if copy is None or users is None or user is None:
            return
        but = copy.key if attempt.kind == "close_others" else None
        began = web.schedule.now
        closed = yield from users.close_user(user, but)
        self._judge.closed_user(web, user, but, began, closed)

    def _close_all(self, web: ModelWebServer) -> Flow[None]:
        """What an operator asks for; it has no session."""
        assert web.everyone is not None
        yield from web.everyone.close("by an operator")
        self._judge.closed_all(web, web.everyone.closed_before)

    def _open(self, attempt: Attempt, web: ModelWebServer) -> Flow[Session]:
        cookies = attempt.cookies
        unheard: tuple[bytes, ...] = ()
        for sealed, login in ((cookies.login, True), (cookies.anonymous, False)):
            if sealed is None:
                continue
            token: SealedToken = self._codecs.open(sealed, login)
            attempt.moment = self._judge.moment()
            session = web.lifecycle.open_cached(token, login)
            began_at = web.schedule.now
            if session is None:
                self._judge.asking(web, attempt, token)
                session = yield from web.lifecycle.open(token, login)
            if session is not None and session._request.unheard:
                self._judge.unheard(web, attempt, token)
                unheard += session._request.unheard
                continue
            self._judge.opened(web, attempt, token, session, began_at)
            if session is not None:
                session._request.unheard = unheard
                return session
        session = Session()
        session._request.unheard = unheard
        return session

    def _travel(self, attempt: Attempt, visit: SiteVisit, web: ModelWebServer, session: Session) -> Flow[Response]:
        """As the door of hand-offs does it; an answer that sends nobody anywhere is left to the app."""
        assert web.hand_offs is not None
        request = session._request
        shown = request.shown if request.copy_held is not None else None
        attempt.moment = self._judge.moment()
        answer = yield from web.hand_offs.answer(
            msgspec.structs.replace(visit, session=shown, login=request.login, binder=attempt.cookies.binder)
        )
        if isinstance(answer, Refuse):
            return Response(answer.status)
        if isinstance(answer, Pass):
            return Response()
        issue = answer.issue
        if issue is None:
            saved = web.lifecycle.finish(session)
            if not isinstance(saved, Saved):
                saved = yield from as_flow(saved)
            response = self._respond(attempt, web, session, saved)
        else:
            self._judge.handed_over(web, attempt, issue)
            response = Response()
            sealed = self._codecs.seal(issue.token, issue.login)
            if issue.login:
                response.set_login, response.clear_anonymous = sealed, attempt.cookies.anonymous is not None
            else:
                response.set_anonymous = sealed
        response.go = answer
        return response

    def _respond(self, attempt: Attempt, web: ModelWebServer, session: Session, saved: Saved) -> Response:
        response = Response()
        shown = attempt.cookies
        changes = cookie_changes(
            session._request, saved, lambda: shown.login is not None, lambda: shown.anonymous is not None
        )
        response.clear_login, response.clear_anonymous = changes.clear_login, changes.clear_anonymous
        if changes.issue is not None:
            issue = changes.issue
            self._judge.issued(web, attempt, issue)
            sealed = self._codecs.seal(issue.token, issue.login)
            if issue.login:
                response.set_login = sealed
            else:
                response.set_anonymous = sealed
        self._judge.responding(web, attempt, session)
        return response
