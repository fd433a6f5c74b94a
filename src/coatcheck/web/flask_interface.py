"""What the session interfaces of Flask and Quart have in common: all but waiting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Final

from flask.sessions import NullSession

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.sessions.answer import Answer, OneCookie
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.routes import Header
from coatcheck.web.flask_headers import adopt, is_cached, set_cookie
from coatcheck.web.flask_session import FrameworkSession, ValueTags
from coatcheck.web.moving_in import Former, FormerSession, MovingIn

NO_SESSIONS: Final = (
    "The session is unavailable because nobody keeps it: give SessionInterface what connect(...) returns, or wrap the "
    "app in coatcheck's SessionMiddleware."
)


class NobodysSession(NullSession):
    """Where there are no sessions at all: it can be read, is empty, and says so when it is changed."""

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(NO_SESSIONS)

    __setitem__ = __delitem__ = clear = pop = popitem = update = setdefault = _fail


class CommonInterface:
    """Takes the place of a framework's own interface together with that one's methods for settings."""

    null_session_class: type[NullSession] = NobodysSession
    session_class: type[FrameworkSession] = FrameworkSession
    should_set_cookie: Any
    get_cookie_name: Any

    def __init__(
        self, sessions: Sessions | ThreadedSessions | None, former: Sequence[Former], until: date | None
    ) -> None:
        self.serializer = ValueTags()
        """The tags of values that come back as what they were; ``serializer.register(...)`` adds one."""
        self.moving_in = MovingIn(former, until, lambda content: content.get("_user_id"))
        self._transport = OneCookie(sessions is not None and sessions.cookies.clear_site_data)

    def shown_by(self, app: Any, request: Any) -> bytes:
        """The value of the session's cookie, empty if the browser shows none."""
        return self._transport.find(value.encode() for value in request.cookies.getlist(self.get_cookie_name(app)))

    def session_of(self, opened: Opened) -> FrameworkSession:
        """The session of a request that this interface has opened."""
        return self.session_class.of(opened.session, self.serializer, opened)

    def wrap(self, app: Any, outside: Session) -> FrameworkSession:
        """The session that another layer has opened, and saves."""
        session = self.session_class.of(outside, self.serializer)
        if session.has_outlived(app.permanent_session_lifetime):
            session.close()
            session._is_over = True
        return session

    def find_former(self, session: FrameworkSession, request: Any) -> FormerSession | None:
        """The session of before that a browser shows which shows none of ours. It may wait for a store of before."""
        opened = session._opened
        if not session.is_new or (opened is not None and opened.cookie_header):
            return None
        return self.moving_in.find(request.cookies)

    def hand_outside(self, app: Any, session: FrameworkSession, response: Any) -> None:
        """When the response starts: bring what the app did to the layer that saves it.

        That layer stores it later, so a session of before is left to its own end.
        """
        session.leave_if_emptied()
        if session._is_over and len(session):
            session.regenerate()
        session.hand_over(self.serializer)
        if response is not None:
            self._clear_former(app, session, response)

    def settle(self, app: Any, session: FrameworkSession, response: Any) -> bool:
        """Before a session is finished: what the framework's rules say of it. Whether the browser is to forget it."""
        forget = session.leave_if_emptied()
        accessed = session.accessed
        asked = accessed or session.modified or not is_cached(response)
        if asked and len(session) and self.should_set_cookie(app, session):
            session.refresh_for(app.permanent_session_lifetime)
        session.accessed = accessed  # what was asked here is nobody's look at the session
        session.hand_over(self.serializer)
        return forget

    def conclude(
        self, app: Any, session: FrameworkSession, response: Any, given: Iterable[Header], answer: Answer, forget: bool
    ) -> None:
        """Once it is finished: the response's headers, and its cookie."""
        adopt(response, given, answer.headers)
        token = b"" if forget else answer.token
        if token is not None:
            accessed = session.accessed
            set_cookie(self, app, session, response, token)
            session.accessed = accessed
        self._clear_former(app, session, response)

    def _clear_former(self, app: Any, session: FrameworkSession, response: Any) -> None:
        found = session._found
        if found is not None and found.cookie != self.get_cookie_name(app):
            set_cookie(self, app, session, response, b"", found.cookie)


def headers_shown(request: Any) -> tuple[Header, ...]:
    """Of a request's headers the one that a user is shown."""
    agent = request.headers.get("User-Agent")
    return ((b"user-agent", agent.encode("latin-1", "replace")),) if agent else ()
