"""coatcheck: session management for web farms. Leave your session anywhere, pick it up anywhere."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coatcheck.connecting import connect
    from coatcheck.drivers.sessions import SessionInfo, Sessions
    from coatcheck.drivers.threads import ThreadedSessions
    from coatcheck.error_pages import ErrorPages
    from coatcheck.errors import (
        CoatcheckError,
        ConfigError,
        ConflictError,
        SessionClosed,
        SessionDataError,
        SessionUnavailable,
    )
    from coatcheck.events import Event, EventKind
    from coatcheck.sessions.answer import Answer
    from coatcheck.sessions.cookies import CookiePolicy
    from coatcheck.sessions.ending import SessionEnd
    from coatcheck.sessions.mapping import Session
    from coatcheck.tokens.keyring import KeyRing
    from coatcheck.web.asgi import SessionMiddleware

__version__ = "0.1.0"

_HOMES = {
    "Answer": "sessions.answer",
    "CoatcheckError": "errors",
    "ConfigError": "errors",
    "ConflictError": "errors",
    "CookiePolicy": "sessions.cookies",
    "ErrorPages": "error_pages",
    "Event": "events",
    "EventKind": "events",
    "KeyRing": "tokens.keyring",
    "Session": "sessions.mapping",
    "SessionClosed": "errors",
    "SessionDataError": "errors",
    "SessionEnd": "sessions.ending",
    "SessionInfo": "drivers.sessions",
    "SessionMiddleware": "web.asgi",
    "SessionUnavailable": "errors",
    "Sessions": "drivers.sessions",
    "ThreadedSessions": "drivers.threads",
    "connect": "connecting",
}

__all__ = [
    "Answer",
    "CoatcheckError",
    "ConfigError",
    "ConflictError",
    "CookiePolicy",
    "ErrorPages",
    "Event",
    "EventKind",
    "KeyRing",
    "Session",
    "SessionClosed",
    "SessionDataError",
    "SessionEnd",
    "SessionInfo",
    "SessionMiddleware",
    "SessionUnavailable",
    "Sessions",
    "ThreadedSessions",
    "connect",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that each part costs only those who use it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coatcheck' has no attribute {name!r}")
    return getattr(import_module(f"coatcheck.{_HOMES[name]}"), name)
