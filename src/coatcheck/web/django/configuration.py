"""From Django's settings to the sessions of this process."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.encoding import force_bytes

from coatcheck.connecting import connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConfigError
from coatcheck.web.django.former import FormerSessions

NAME: Final = "COATCHECK"
MOVING_IN: Final = "moving_in"
"""The one setting that is not of our own sessions."""
IN_MEMORY: Final = "memory://"
DAY_S: Final = 86400.0
IDLE_TIMEOUT_S: Final = 90 * DAY_S
"""If nobody says otherwise: how long a session may live without being used, whatever ``set_expiry`` says."""
ABSOLUTE_TIMEOUT_S: Final = 400 * DAY_S
"""And how long in all: as long as browsers keep a cookie."""

_log: Final = logging.getLogger("coatcheck.sessions")
_lock: Final = threading.Lock()
_made: Final[dict[str, ThreadedSessions]] = {}
"""By what was configured: tests that change settings for a while find their sessions again afterwards."""
_current: list[ThreadedSessions] = []
_former: list[FormerSessions] = []
_of_the_farm: list[Mapping[str, Any]] = []
"""``moving_in`` as ``coatcheck serve`` has it, if it does."""
_known_keys: Final[list[bytes]] = []
"""Made from ``SECRET_KEY`` as it is and was in this process."""
MAX_KEYS: Final = 8


def sessions() -> ThreadedSessions:
    """The sessions of this process, as the settings say; built once, and safe to fork.

    Raises :class:`ImproperlyConfigured`, in one line.
    """
    return _current[0] if _current else _find()


def _find() -> ThreadedSessions:
    with _lock:
        if not _current:
            servers, arguments = _arguments()
            known = repr((servers, sorted(arguments.items(), key=lambda item: item[0])))
            keys = None if "key" in arguments else _keys_of_django()
            made = _made.get(known)
            if made is None:
                made = _made[known] = _connect(servers, {"key": keys, **arguments})
                if not is_configured() and not settings.DEBUG:
                    _log.warning("%s is not set: sessions are in the memory of this process, and end with it", NAME)
            elif keys is not None:
                # A test has changed SECRET_KEY, and the session servers hold what was sealed before.
                made.change_keys([*keys, *(key for key in _known_keys if key not in keys)][:MAX_KEYS], 0)
            _known_keys.extend(key for key in keys or () if key not in _known_keys)
            _current.append(made)
        return _current[0]


def former() -> FormerSessions:
    """The sessions of before, as the settings say. Raises :class:`ImproperlyConfigured`."""
    if not _former:
        try:
            found = FormerSessions(_of_the_farm[0] if _of_the_farm else _given().get(MOVING_IN))
        except ImproperlyConfigured as error:
            raise ImproperlyConfigured(f"{NAME}: {error}") from None
        with _lock:
            _former.append(found)
    return _former[0]


def move_in(moving_in: Mapping[str, Any]) -> None:
    """What ``moving_in`` says is given by a layer outside: what ``COATCHECK`` says of it does not count.

    Raises :class:`ImproperlyConfigured`, in one line, also where the project's sessions are not ours.
    """
    kind = import_module(settings.SESSION_ENGINE).SessionStore
    if not issubclass(kind, import_module("coatcheck.web.django.store").SessionStore):
        raise ImproperlyConfigured(f"SESSION_ENGINE: {settings.SESSION_ENGINE} is not ours; say 'coatcheck.web.django'")
    with _lock:
        _of_the_farm[:] = [moving_in]
        _former.clear()
    former()


def is_configured() -> bool:
    """Whether the project says where its sessions are."""
    return bool(getattr(settings, NAME, None)) and set(_given()) != {MOVING_IN}


def check() -> None:
    """Raises :class:`ImproperlyConfigured` for settings that cannot work; connects to nothing."""
    if is_configured():
        sessions()
    former()


def _given() -> Mapping[str, Any]:
    given = getattr(settings, NAME, None) or {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"{NAME}: a dict, such as {{'session_servers': ['valkey://10.0.0.5']}}")
    return given


def _arguments() -> tuple[tuple[str, ...], dict[str, Any]]:
    arguments = dict(_given())
    arguments.pop(MOVING_IN, None)
    servers = arguments.pop("session_servers", None if arguments else IN_MEMORY)
    servers = [servers] if isinstance(servers, str) else servers
    if not isinstance(servers, list | tuple) or not servers or not all(isinstance(one, str) for one in servers):
        raise ImproperlyConfigured(f"{NAME}: session_servers: a URL, or a list of them, such as 'valkey://10.0.0.5'")
    for taken in ("driver", "cookies", "sites", "observer"):
        if taken in arguments:
            raise ImproperlyConfigured(f"{NAME}: {taken}: not a setting of Django's sessions; see docs/django.md")
    idle = max(IDLE_TIMEOUT_S, float(settings.SESSION_COOKIE_AGE))
    if "absolute_timeout_s" not in arguments:
        arguments["absolute_timeout_s"] = max(ABSOLUTE_TIMEOUT_S, idle)
        arguments.setdefault("idle_timeout_s", idle)
    # Django keeps a session as long as it was told, whoever comes back, and behind a proxy all have one address.
    arguments.setdefault("new_session_life_s", 0)
    arguments.setdefault("new_sessions_per_minute", 0)
    return tuple(servers), arguments


def _connect(servers: tuple[str, ...], arguments: dict[str, Any]) -> ThreadedSessions:
    try:
        return connect(*servers, driver="threads", **arguments)
    except ConfigError as error:
        raise ImproperlyConfigured(f"{NAME}: {error}") from None
    except TypeError as error:
        raise ImproperlyConfigured(f"{NAME}: {error}") from error


def _keys_of_django() -> list[bytes]:
    """Made from ``SECRET_KEY`` and, to open what they sealed, ``SECRET_KEY_FALLBACKS``."""
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return [
        hashlib.blake2b(force_bytes(secret), person=b"coatcheck.django", digest_size=32).digest() for secret in secrets
    ]


def _forget(*, setting: str, **_: object) -> None:
    """A test has changed a setting."""
    if setting in (NAME, "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        with _lock:
            _current.clear()
            _former.clear()


setting_changed.connect(_forget, dispatch_uid="coatcheck.web.django.configuration")
