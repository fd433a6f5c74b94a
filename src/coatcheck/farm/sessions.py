"""The only place that chooses adapters: from settings to open sessions."""

from __future__ import annotations

import base64
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConfigError
from coatcheck.events import Event, EventKind
from coatcheck.farm.session_server_url import parse_session_server
from coatcheck.farm.settings import SessionServerAddress, SessionSettings
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.port import Store
from coatcheck.tokens.keyring import KeyRing

log = logging.getLogger("coatcheck.sessions")
_QUIET = {EventKind.TOKEN_REJECTED, EventKind.SESSION_EXPIRED, EventKind.SESSION_CLOSED, EventKind.BELOW_TARGET}


def open_sessions(settings: SessionSettings) -> Sessions:
    """The sessions of one web server, not yet connected: ``await sessions.open()`` does that."""
    stores = [open_store(address, settings) for address in settings.session_servers]
    checked_locally = all(urlsplit(address.url).scheme in ("sqlite", "memory") for address in settings.session_servers)
    return Sessions(
        farm=settings.farm,
        server_name=settings.server,
        stores=stores,
        ring=KeyRing(settings.keys, settings.primary_key),
        copies=settings.copies,
        replication=ReplicationPolicy(
            durability=settings.durability,
            below_target=settings.below_target,
            too_few_answers=settings.too_few_answers,
            # Where a check is cheap nobody need be trusted for two seconds (protocol 5).
            lease_s=0.0 if checked_locally else settings.lease_s,
        ),
        policy=SessionPolicy(
            rotate_after_ms=_ms(settings.rotate_after_s),
            grace_ms=_ms(settings.grace_s),
            theft=settings.theft,
            rolled_back=settings.rolled_back,
            conflict=settings.conflict,
            idle_timeout_ms=_ms(settings.idle_timeout_s),
            absolute_timeout_ms=_ms(settings.absolute_timeout_s),
        ),
        observer=log_event,
    )


def connect(
    *session_servers: str,
    key: str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    server: str = "",
    **options: Any,
) -> Sessions:
    """Sessions on one or more session servers, for :class:`coatcheck.SessionMiddleware`.

    ``session_servers``: ``[NAME=]URL`` each: ``sqlite:///FILE``, ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``,
    ``unix:///SOCKET``. ``key``: 32 random bytes or more, or their base64url text; of several, the first one seals.
    ``server``: this web server's name, for logs. ``options``: the other fields of :class:`SessionSettings`,
    durations in seconds (``copies=2``, ``idle_timeout_s=1800``). Raises :class:`ConfigError`.
    """
    keys = [key] if isinstance(key, str | bytes) else list(key)
    addresses = [parse_session_server(text, number) for number, text in enumerate(session_servers, 1)]
    if not addresses:
        raise ConfigError("connect: name at least one session server, such as 'sqlite:///sessions.db'")
    options.setdefault("copies", min(2, len(addresses)))
    try:
        settings = SessionSettings(
            farm=farm,
            server=server or f"{socket.gethostname()}-{os.getpid()}",
            session_servers=tuple(addresses),
            keys=tuple(_secret(each) for each in keys),
            **options,
        )
    except TypeError as error:
        raise ConfigError(f"connect: {error}") from None
    return open_sessions(settings)


def _secret(key: str | bytes) -> bytes:
    if isinstance(key, bytes):
        return key
    try:
        return base64.urlsafe_b64decode(key + "=" * (-len(key) % 4))
    except ValueError:
        raise ConfigError("connect: the key is not base64url text") from None


def open_store(address: SessionServerAddress, settings: SessionSettings) -> Store:
    """The adapter for a session server's URL; raises :class:`ConfigError` for an unknown scheme."""
    parts = urlsplit(address.url)
    timeout_s = settings.store_timeout_s
    match parts.scheme:
        case "coatcheck":
            from coatcheck.stores.session_server_store import SessionServerStore

            if parts.hostname is None or parts.port is None:
                raise ConfigError(f"session server {address.name}: coatcheck://HOST:PORT is needed")
            return SessionServerStore(
                address.name, parts.hostname, parts.port, password=parts.password or "", timeout_s=timeout_s
            )
        case "redis" | "rediss" | "valkey" | "valkeys" | "unix":
            from coatcheck.stores.valkey import ValkeyStore

            return ValkeyStore(address.name, address.url, farm=settings.farm, timeout_s=timeout_s)
        case "sqlite":
            from coatcheck.stores.sqlite import SqliteStore

            return SqliteStore(address.name, parts.path.removeprefix("/"), time.time)
        case "memory":
            from coatcheck.stores.memory import MemoryStore

            return MemoryStore(address.name, time.monotonic)
    raise ConfigError(f"session server {address.name}: unknown scheme {parts.scheme!r} in its URL")


def log_event(event: Event) -> None:
    """Events in the log: one line each, no secrets; what an operator must see is a warning."""
    level = logging.DEBUG if event.kind in _QUIET else logging.WARNING
    log.log(level, "%s session=%s %s", event.kind.value, event.session or "-", event.detail)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
