"""The library's front door: from URLs and settings to open sessions. The only place that chooses adapters.

A module called ``connect`` would take the place of the function ``coatcheck.connect``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, get_args, overload

import msgspec

from coatcheck.access import SessionAccess
from coatcheck.drivers.key_refresh import RefreshKeys
from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConfigError
from coatcheck.event_log import log_event
from coatcheck.events import Observer, both
from coatcheck.hand_off.sites import Sites
from coatcheck.options import check_plain_name, refuse_unknown, settings_of, shown
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.newcomers import Newcomers
from coatcheck.sessions.policy import Merge
from coatcheck.sessions.settings import SessionArguments, SessionSettings, check_copies, default_copies
from coatcheck.stores.port import Store
from coatcheck.stores.session_server_url import SCHEMES, SessionServerAddress, parse_session_servers
from coatcheck.take_once.port import TakeOncePlace, TakeOnceStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import HOW as HOW_TO_MAKE_A_KEY
from coatcheck.tokens.secret import parse_key

if TYPE_CHECKING:
    from coatcheck.stores.memory import MemoryStore

Driver = Literal["asyncio", "threads"]
"""What runs the flows: the event loop of the requests, or a thread in the background."""

MAX_SERVER_NAME: Final = 255
"""Characters of a web server's name in the log: a host name and a process ID."""


def open_sessions(
    access: SessionAccess,
    merge: Merge | None = None,
    observer: Observer | None = None,
    cookies: CookiePolicy | None = None,
    refresh_keys: RefreshKeys | None = None,
) -> Sessions:
    """The sessions of one web server, not yet connected: ``await sessions.start()`` does that.

    ``observer`` is told each event besides the log; ``refresh_keys``: as :class:`Sessions` takes it.
    """
    settings = access.settings
    memory: dict[str, MemoryStore] = {}

    def stores() -> list[Store]:
        return [open_store(address, access.farm, settings, memory) for address in access.session_servers]

    places = _items_of(access) if access.sites is not None else []

    def items() -> list[TakeOnceStore]:
        return [place.for_a_loop() for place in places]

    checked_locally = all(address.parts.scheme in ("sqlite", "memory") for address in access.session_servers)
    replication = settings.replication()
    if checked_locally:
        # Where a check is cheap nobody need be trusted for two seconds (protocol section 4).
        replication = msgspec.structs.replace(replication, lease_s=0.0)
    return Sessions(
        farm=access.farm,
        server_name=access.server,
        stores=stores,
        ring=KeyRing(access.keys, access.primary_key),
        copies=settings.copies,
        list_number=settings.session_server_list,
        replication=replication,
        policy=settings.policy(merge),
        open_streams=settings.open_streams,
        in_memory=all(address.parts.scheme == "memory" for address in access.session_servers),
        newcomers=Newcomers(settings.new_sessions_burst, settings.new_sessions_per_minute),
        cookies=cookies,
        sites=access.sites,
        items=items if access.sites is not None else tuple,
        observer=log_event if observer is None else both(log_event, observer),
        refresh_keys=refresh_keys,
    )


@overload
def connect(
    *session_servers: str,
    key: str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    server: str = "",
    driver: Literal["asyncio"] = "asyncio",
    cookies: CookiePolicy | None = None,
    sites: Sites | None = None,
    observer: Observer | None = None,
    **settings: Unpack[SessionArguments],
) -> Sessions: ...


@overload
def connect(
    *session_servers: str,
    key: str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    server: str = "",
    driver: Literal["threads"],
    cookies: CookiePolicy | None = None,
    observer: Observer | None = None,
    **settings: Unpack[SessionArguments],
) -> ThreadedSessions: ...


def connect(
    *session_servers: str,
    key: str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    server: str = "",
    driver: Driver = "asyncio",
    cookies: CookiePolicy | None = None,
    sites: Sites | None = None,
    observer: Observer | None = None,
    **settings: Unpack[SessionArguments],
) -> Sessions | ThreadedSessions:
    """Sessions on one or more session servers, for :class:`coatcheck.SessionMiddleware`.

    ``session_servers``: ``[NAME=]URL`` each: ``sqlite:///FILE``, ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``,
    ``unix:///SOCKET``, or ``memory://``, which this process alone can use. ``key``: 32 random bytes or more, or their
    text in base64url, base64 or hex; of several, the first one seals. ``server``: this web server's name, for logs.
    ``driver``: ``threads`` for apps whose requests run in threads (WSGI), ``asyncio`` for those on an event loop.
    ``cookies``: how browsers keep their tokens, unless the middleware says otherwise; ``Secure`` and ``__Host-`` if
    nobody does. ``sites``: where the pages live, if at more than one origin. ``observer`` is called with each
    :class:`coatcheck.events.Event`, besides the log, while requests wait.
    ``settings``: the settings of the farm's ``[session]`` table, by the same names with the same bounds; durations end
    in ``_s`` (``idle_timeout_s=1800`` or ``"30m"``). ``conflict`` may be a function ``merge(key, base, theirs, mine)``.
    Raises :class:`ConfigError`: one line, the same as the farm's.
    """
    refuse_unknown(settings, (each.field for each in settings_of(SessionSettings)), "connect")
    addresses = parse_session_servers(session_servers, SCHEMES)
    if not addresses:
        raise ConfigError("connect: name at least one session server, such as 'sqlite:///sessions.db'")
    check_plain_name("farm", farm)
    if not isinstance(server, str) or len(server) > MAX_SERVER_NAME or not server.isprintable():
        raise ConfigError(f"server: at most {MAX_SERVER_NAME} printable characters (got {shown(server)!r})")
    if observer is not None and not callable(observer):
        raise ConfigError(f"observer: a function that takes an event (got {shown(observer)!r})")
    if driver not in get_args(Driver):
        raise ConfigError(f"connect: driver: choose one of {', '.join(get_args(Driver))} (got {shown(driver)!r})")
    if cookies is not None and not isinstance(cookies, CookiePolicy):
        raise ConfigError(f"connect: cookies: a CookiePolicy, not {type(cookies).__name__}")
    if sites is not None and not isinstance(sites, Sites):
        raise ConfigError(f"connect: sites: Sites, not {type(sites).__name__}")
    if sites is not None and driver == "threads":
        raise ConfigError("connect: sites: only with driver = 'asyncio', whose middleware hands sessions over")
    conflict = settings.get("conflict")
    values: dict[str, Any] = {"copies": default_copies(len(addresses)), **settings}
    if callable(conflict):
        del values["conflict"]
    judged = SessionSettings(**values)
    if judged.device_binding != "off" and driver == "threads":
        raise ConfigError("connect: device_binding: only with driver = 'asyncio', whose middleware binds sessions")
    check_copies(judged.copies, len(addresses))
    access = SessionAccess(
        farm=farm,
        server=server or f"{socket.gethostname()}-{os.getpid()}",
        session_servers=addresses,
        keys=_keys(key),
        settings=judged,
        sites=sites,
    )
    sessions = open_sessions(access, conflict if callable(conflict) else None, observer, cookies)
    return ThreadedSessions(sessions) if driver == "threads" else sessions


def _items_of(access: SessionAccess) -> list[TakeOncePlace]:
    """Where tickets are kept: at the session servers, under their names; with SQLite, in a file beside the sessions."""
    from coatcheck.stores.sqlite import DEFAULT_TIMEOUT_S as FILE_TIMEOUT_S
    from coatcheck.stores.take_once.opening import items_at, items_in_a_file

    timeout_s = access.settings.store_timeout_s
    return [
        items_in_a_file(address.name, f"{address.parts.path}-items", FILE_TIMEOUT_S)
        if address.parts.scheme == "sqlite"
        else items_at(address, access.farm, timeout_s)
        for address in access.session_servers
    ]


def _keys(key: object) -> tuple[bytes, ...]:
    """The secrets of the key ring; :class:`KeyRing` judges how many there are."""
    given = [key] if isinstance(key, str | bytes) else key
    if not isinstance(given, Sequence) or not all(isinstance(each, str | bytes) for each in given):
        raise ConfigError(f"connect: key: {HOW_TO_MAKE_A_KEY}, and give it as text or bytes, or several in a list")
    return tuple(parse_key(each, "connect: key") for each in given)


def open_store(
    address: SessionServerAddress, farm: str, settings: SessionSettings, memory: dict[str, MemoryStore] | None = None
) -> Store:
    """The adapter for a session server's URL. ``memory``: the stores in memory that were made before, by name."""
    parts, timeout_s = address.parts, settings.store_timeout_s
    match parts.scheme:
        case "coatcheck":
            from coatcheck.stores.session_server_store import SessionServerStore

            return SessionServerStore(
                address.name,
                parts.host,
                parts.port or 0,
                path=parts.path,
                server_name=address.name if address.proves_its_name else "",
                password=parts.password,
                timeout_s=timeout_s,
            )
        case "sqlite":
            from coatcheck.host_clock import HeldClock
            from coatcheck.stores.sqlite import SqliteStore

            return SqliteStore(address.name, parts.path, HeldClock().now_s)
        case "memory":
            from coatcheck.stores.memory import MemoryStore

            memory = memory if memory is not None else {}
            memory[address.name] = MemoryStore(address.name, time.monotonic, beside=memory.get(address.name))
            return memory[address.name]
    from coatcheck.stores.valkey import ValkeyStore

    return ValkeyStore(address.name, address.url, farm=farm, timeout_s=timeout_s)
