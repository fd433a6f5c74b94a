"""coatcheck: session management for web farms. Leave your session anywhere, pick it up anywhere."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coatcheck.audit import AuditLog, AuditRecord, audit_to
    from coatcheck.connecting import connect
    from coatcheck.drivers.sessions import SessionInfo, Sessions, UserSession
    from coatcheck.drivers.threads import ThreadedSessions
    from coatcheck.error_pages import ErrorPages
    from coatcheck.errors import (
        CoatcheckError,
        ConfigError,
        ConflictError,
        SessionClosed,
        SessionDataError,
        SessionUnavailable,
        TooManySessions,
    )
    from coatcheck.events import Event, EventKind
    from coatcheck.hand_off.sites import Site, Sites
    from coatcheck.sessions.answer import Answer
    from coatcheck.sessions.cookies import CookiePolicy
    from coatcheck.sessions.devices import Device
    from coatcheck.sessions.ending import SessionEnd
    from coatcheck.sessions.json_form import not_json
    from coatcheck.sessions.mapping import Session
    from coatcheck.sessions.users import UserClosed
    from coatcheck.sessions.value_names import register_value
    from coatcheck.sessions.value_reading import UnknownValue
    from coatcheck.tokens.keyring import KeyRing
    from coatcheck.web.asgi import SessionMiddleware
    from coatcheck.web.durable_websocket import DurableWebSocket, durable_websocket

__version__ = "0.1.0"

_HOMES = {
    "Answer": "sessions.answer",
    "AuditLog": "audit",
    "AuditRecord": "audit",
    "audit_to": "audit",
    "CoatcheckError": "errors",
    "ConfigError": "errors",
    "ConflictError": "errors",
    "CookiePolicy": "sessions.cookies",
    "DurableWebSocket": "web.durable_websocket",
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
    "Site": "hand_off.sites",
    "Sites": "hand_off.sites",
    "ThreadedSessions": "drivers.threads",
    "TooManySessions": "errors",
    "UserClosed": "sessions.users",
    "UserSession": "drivers.sessions",
    "Device": "sessions.devices",
    "connect": "connecting",
    "durable_websocket": "web.durable_websocket",
    "UnknownValue": "sessions.value_reading",
    "not_json": "sessions.json_form",
    "register_value": "sessions.value_names",
}

__all__ = [
    "Answer",
    "AuditLog",
    "AuditRecord",
    "CoatcheckError",
    "ConfigError",
    "ConflictError",
    "CookiePolicy",
    "Device",
    "DurableWebSocket",
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
    "Site",
    "Sites",
    "ThreadedSessions",
    "TooManySessions",
    "UnknownValue",
    "UserClosed",
    "UserSession",
    "audit_to",
    "connect",
    "durable_websocket",
    "not_json",
    "register_value",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that each part costs only those who use it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coatcheck' has no attribute {name!r}")
    return getattr(import_module(f"coatcheck.{_HOMES[name]}"), name)
