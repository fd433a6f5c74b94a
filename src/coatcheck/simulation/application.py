"""What a browser asks for, and what the small app behind the middleware does about it."""

from __future__ import annotations

from typing import Any, Literal

from coatcheck.hand_off.rules import Go, SiteVisit
from coatcheck.sessions.mapping import Session

Kind = Literal[
    "read", "write", "delete", "register", "count", "nested", "rotate", "login", "logout", "close_user", "close_others",
    "close_all", "travel",
]  # fmt: skip
"""``close_all``: an operator's; ``travel``: one step of a hand-off, or the page at its end."""


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
    """The two session cookies, and the binder of hand-offs, as the browser holds them; ``None``: no such cookie."""

    __slots__ = ("anonymous", "binder", "login")

    def __init__(self, anonymous: Any = None, login: Any = None, binder: bytes | None = None) -> None:
        self.anonymous = anonymous
        self.login = login
        self.binder = binder


class Attempt:
    """One delivery of one request to one web server."""

    __slots__ = (
        "answered",
        "asked_for",
        "began_at",
        "browser",
        "cookies",
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
        "site",
        "task",
        "visit",
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
        self.web: Any = None
        """The web server that it came to."""
        self.session: Session | None = None
        self.operation: Operation | None = None
        self.site = ""
        """At which site it is sent."""
        self.visit: SiteVisit | None = None
        """What hand-offs look at."""
        self.task: Any = None
        self.answered = False
        self.asked_for: set[bytes] = set()
        """The sessions of which it has asked for all copies."""
        self.login = False
        self.parallel = False
        self.events: list[Any] = []
        self.error: Exception | None = None


class Response:
    """``set_*``: a new cookie; ``clear_*``: delete it. ``status`` 503 or 409: the session could not be had or saved."""

    __slots__ = ("clear_anonymous", "clear_login", "go", "set_anonymous", "set_login", "status")

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.set_anonymous: Any = None
        self.set_login: Any = None
        self.clear_anonymous = False
        self.clear_login = False
        self.go: Go | None = None
        """Where the browser is sent."""


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
