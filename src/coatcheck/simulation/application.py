"""What a request does on a web server: the steps of the middleware, and a small app behind it."""

from __future__ import annotations

from typing import Any, Literal

from coatcheck.replication.effects import Flow, Pause, as_flow
from coatcheck.sessions.answer import cookie_changes
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.saving import Saved
from coatcheck.simulation.schedule import Act
from coatcheck.simulation.web_server import ModelWebServer
from coatcheck.tokens.sealed import SealedToken

Kind = Literal["read", "write", "delete", "register", "count", "nested", "rotate", "login", "logout"]


class Operation:
    """What one attempt of a request did to the data, and in which versions that was offered to the farm."""

    __slots__ = ("acked_at", "base", "kind", "name", "session_key", "value", "versions")

    def __init__(self, kind: Kind, name: str, value: int, base: Any) -> None:
        self.kind = kind
        self.name = name
        self.value = value
        self.base = base
        self.versions: list[Any] = []
        self.session_key = b""
        self.acked_at: float | None = None


class Cookies:
    """The two session cookies as the browser holds them; ``None``: no such cookie."""

    __slots__ = ("anonymous", "login")

    def __init__(self, anonymous: Any = None, login: Any = None) -> None:
        self.anonymous = anonymous
        self.login = login


class Attempt:
    """One delivery of one request to one web server."""

    __slots__ = (
        "answered",
        "began_at",
        "browser",
        "cookies",
        "done",
        "error",
        "events",
        "kind",
        "login",
        "moment",
        "number",
        "operation",
        "parallel",
        "sent_at",
        "session",
        "task",
        "web",
    )  # fmt: skip

    def __init__(self, number: int, kind: Kind, browser: Any, cookies: Cookies, sent_at: float) -> None:
        self.number = number
        self.kind = kind
        self.browser = browser
        self.cookies = cookies
        self.sent_at = sent_at
        self.began_at = 0.0
        self.moment = 0
        self.web: ModelWebServer | None = None
        self.session: Session | None = None
        self.operation: Operation | None = None
        self.task: Any = None
        self.answered = False
        self.login = False
        self.parallel = False
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.done: Act


class Response:
    """``set_*``: a new cookie; ``clear_*``: delete it. ``status`` 503 or 409: the session could not be had or saved."""

    __slots__ = ("clear_anonymous", "clear_login", "set_anonymous", "set_login", "status")

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.set_anonymous: Any = None
        self.set_login: Any = None
        self.clear_anonymous = False
        self.clear_login = False


class App:
    """Handles attempts; ``judge`` (the ledger) sees what was opened and saved."""

    def __init__(self, judge: Any, codecs: Any) -> None:
        self._judge = judge
        self._codecs = codecs

    def handle(self, attempt: Attempt, web: ModelWebServer, think_s: float) -> Flow[Response]:
        session = yield from self._open(attempt, web)
        attempt.session = session
        if think_s:
            yield Pause(think_s)
        act(attempt, session)
        before = session._request.copy_held.key if session._request.copy_held is not None else None
        saved = web.lifecycle.finish(session)
        if not isinstance(saved, Saved):
            saved = yield from as_flow(saved)
            self._judge.saved(web, attempt, session, saved, before)
        return self._respond(attempt, web, session, saved)

    def _open(self, attempt: Attempt, web: ModelWebServer) -> Flow[Session]:
        cookies = attempt.cookies
        unheard: tuple[bytes, ...] = ()
        for sealed, login in ((cookies.login, True), (cookies.anonymous, False)):
            if sealed is None:
                continue
            token: SealedToken = self._codecs.open(sealed, login)
            attempt.moment = self._judge.moment()
            session = web.lifecycle.open_cached(token, login)
            by_lease = session is not None
            began_at = web.schedule.now
            if session is None:
                self._judge.asking(web, attempt, token)
                session = yield from web.lifecycle.open(token, login)
            if session is not None and session._request.unheard:
                self._judge.unheard(web, attempt, token)
                unheard += session._request.unheard
                continue
            self._judge.opened(web, attempt, token, session, by_lease, began_at)
            if session is not None:
                session._request.unheard = unheard
                return session
        session = Session()
        session._request.unheard = unheard
        return session

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


def act(attempt: Attempt, session: Session) -> None:
    """The app's own part: what the request changes. Each write sets a key of its own to a unique value."""
    kind, number = attempt.kind, attempt.number
    if kind == "write":
        attempt.operation = Operation(kind, f"w{number}", number, None)
        session[f"w{number}"] = number
    elif kind == "delete":
        names = [name for name in session if name[0] == "w"]
        if names:
            name = names[number % len(names)]
            attempt.operation = Operation(kind, name, number, session[name])
            del session[name]
    elif kind == "register":
        attempt.operation = Operation(kind, "r", number, session.get("r"))
        session["r"] = number
    elif kind == "count":
        attempt.operation = Operation(kind, "c", number, session.get("c"))
        session["c"] = session.get("c", 0) + 1
    elif kind == "nested":
        nested = session.setdefault("n", {"of": 0})
        attempt.operation = Operation("register", "n", number, nested["of"])
        nested["of"] = number
        nested.setdefault("all", []).append(number)
    elif kind == "rotate":
        session.rotate()
    elif kind == "login":
        session.regenerate(f"user{number % 2}")
    elif kind == "logout" and not session._request.is_nothing:
        session.close()
