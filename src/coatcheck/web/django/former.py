"""Sessions of the engine in use until today, read through its own class: its serializer and its signatures hold.

``COATCHECK = {..., "moving_in": {"engine": "django.contrib.sessions.backends.db", "until": "2027-03-01"}}``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date, datetime
from importlib import import_module
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import cache, signed_cookies
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.core.exceptions import ImproperlyConfigured

from coatcheck.errors import ConfigError
from coatcheck.sessions.mapping import MAX_USER_BYTES
from coatcheck.web.moving_in import LEFT_FOR_S, MovingIn

EXPIRY: Final = "_session_expiry"
"""Where Django keeps what ``set_expiry`` was told."""
LEFT: Final = "_coatcheck_left"
"""In a session that was moved: until when (Unix seconds) requests that run beside may still read it, and what
``set_expiry`` was told before."""
_PROBE: Final = "0" * 32


class FormerEngine:
    """A :class:`coatcheck.web.moving_in.Former`: the sessions of another engine of this project."""

    def __init__(self, kind: type[SessionBase]) -> None:
        self._kind = kind

    @property
    def cookie(self) -> str:
        """The new session's cookie has the same name."""
        name: str = settings.SESSION_COOKIE_NAME
        return name

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        key = cookies[self.cookie]
        store = self._kind(key)
        content = dict(store.load())
        left = content.pop(LEFT, None)
        if left is not None:
            if time.time() >= left["until"]:
                store.delete(key)
                return None
            content.pop(EXPIRY, None)
            if left["expiry"] is not None:
                content[EXPIRY] = left["expiry"]
        if not content:
            self._look_why(store, key)
        return content

    def _look_why(self, store: SessionBase, key: str) -> None:
        if issubclass(self._kind, cache.SessionStore):
            store._cache.get(store.cache_key_prefix + _PROBE)  # load() takes a cache that fails for an empty one
        if store.session_key not in (None, key):
            store.delete()  # the engine of files begins another in the place of one that has expired

    def leave(self, cookies: Mapping[str, str]) -> None:
        if issubclass(self._kind, signed_cookies.SessionStore):
            return  # the cookie was all there is
        store = self._kind(cookies[self.cookie])
        content = store.load()
        if not content or LEFT in content:
            return
        store.update({**content, LEFT: {"until": time.time() + LEFT_FOR_S, "expiry": content.get(EXPIRY)}})
        store.set_expiry(LEFT_FOR_S)
        try:
            store.save()
        except UpdateError:
            return  # somebody has ended it meanwhile

    def end(self, cookies: Mapping[str, str]) -> None:
        """At once: its user has logged out."""
        self._kind(cookies[self.cookie]).delete(cookies[self.cookie])

    def clear_expired(self) -> None:
        self._kind.clear_expired()


class FormerSessions(MovingIn):
    """As ``moving_in`` says; with nothing said, nobody moves in. Raises :class:`ImproperlyConfigured`."""

    def __init__(self, given: object = None) -> None:
        if given is None:
            super().__init__((), None)
            self.engine: FormerEngine | None = None
            return
        if not isinstance(given, Mapping) or set(given) != {"engine", "until"}:
            raise ImproperlyConfigured("moving_in: a dict of 'engine', the SESSION_ENGINE of before, and 'until'")
        self.engine = FormerEngine(_kind_of(given["engine"]))
        try:
            super().__init__([self.engine], _moment(given["until"]), user=_user_of)
        except ConfigError as error:
            raise ImproperlyConfigured(f"moving_in: {error}") from None

    def end(self, key: str) -> None:
        """The session of this key, whose user has logged out."""
        if self.engine is not None:
            self.engine.end({self.engine.cookie: key})


def _user_of(content: Mapping[str, Any]) -> str | None:
    user = str(content.get(SESSION_KEY, ""))
    return user if 0 < len(user.encode()) <= MAX_USER_BYTES else None


def _moment(until: object) -> Any:
    if not isinstance(until, str):
        return until
    try:
        return date.fromisoformat(until) if len(until) == len("2027-03-01") else datetime.fromisoformat(until)
    except ValueError:
        raise ImproperlyConfigured(f"moving_in: until: a date, such as '2027-03-01', not {until!r}") from None


def _kind_of(engine: object) -> type[SessionBase]:
    try:
        kind = import_module(str(engine)).SessionStore
    except (ImportError, AttributeError, ValueError) as error:
        raise ImproperlyConfigured(f"moving_in: engine: {engine!r} is no session engine: {error}") from None
    if not isinstance(kind, type) or not issubclass(kind, SessionBase) or engine == settings.SESSION_ENGINE:
        raise ImproperlyConfigured(f"moving_in: engine: {engine!r} is not the session engine of before")
    try:
        kind()
        _ = getattr(kind, "model", None)
    except (ImproperlyConfigured, RuntimeError) as error:
        raise ImproperlyConfigured(f"moving_in: engine: {error}") from None
    return kind
