"""``share_sessions``: from a context, stores and keys to sessions that the farm shares. Judges the settings."""

from __future__ import annotations

import logging
import os
import ssl
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from coatcheck.duration import format_duration, parse_duration
from coatcheck.errors import ConfigError
from coatcheck.options import check_plain_name, shown
from coatcheck.stores.session_server_url import SCHEMES, parse_session_servers
from coatcheck.stores.take_once.opening import items_at
from coatcheck.take_once.port import TakeOncePlace
from coatcheck.tls.agreement import KeyAgreement
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.openssl import OpenSslRefused
from coatcheck.tls.peers import Peers
from coatcheck.tls.proxy_tickets import ProxyFiles, ProxyTickets
from coatcheck.tls.record import RecordSealer
from coatcheck.tls.repository import SessionRepository
from coatcheck.tls.session_id import SessionIds, store_tag
from coatcheck.tls.sharing import LOOP_LIMIT_S, THREAD_LIMIT_S, SharedSessions
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tls.tickets import FIRST_ROUND_S, SharedTickets
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import HOW as HOW_TO_MAKE_A_KEY
from coatcheck.tokens.secret import parse_key

DEFAULT_LIFETIME_S: Final = 300
MAX_LIFETIME_S: Final = 7 * 24 * 3600
"""RFC 8446 section 4.6.1."""

DEFAULT_PERIOD_S: Final = 3600
TICKET_PERIOD_S: Final = (1.0, 24 * 3600.0)
FETCH_TIMEOUT_S: Final = (0.01, 10.0)

_log: Final = logging.getLogger("coatcheck.tls")
_shared: weakref.WeakKeyDictionary[ssl.SSLContext, SharedSessions] = weakref.WeakKeyDictionary()
_taken: weakref.WeakKeyDictionary[ssl.SSLContext, SharedSessions | SharedTickets] = weakref.WeakKeyDictionary()
"""Contexts whose sessions are shared, in one way or the other."""


def share_sessions(
    context: ssl.SSLContext,
    *,
    store: str | Sequence[str] | Peers,
    server: str,
    keyring: KeyRing | str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    lifetime: float | str = DEFAULT_LIFETIME_S,
    siblings: Iterable[Iterable[str]] = (),
    fetch_timeout: float | str | None = None,
    required: bool = False,
) -> SharedSessions:
    """Let every server of the farm resume the TLS sessions of this server's ``context``, and it theirs (mission C1).

    Call it last, when the context has its certificates and its demands on clients. ``store``: ``[NAME=]URL``, one or
    several: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix:///SOCKET``, ``coatcheck://`` (an
    embedded session server), ``sqlite:///FILE``, or ``memory://``, which this process alone can use; or :class:`Peers`:
    the servers themselves, each for the sessions that it made. ``server``: this
    server's name, unique within the farm. ``keyring``: a :class:`KeyRing`, or its keys as :func:`coatcheck.connect`
    takes them. ``lifetime``: how long a session can be resumed, a number of seconds or a text such as ``"10m"``, 7 days
    at most. ``siblings``: groups of host names that may resume each other's sessions; by default each only its own.
    ``fetch_timeout``: how long a handshake may wait for a store, 10 ms to 10 s; by default 80 ms in a thread, and 0.5 s
    ahead of a handshake on an event loop.

    If the OpenSSL of this Python cannot be proved to be what we think, the context is left as it was, a warning says
    why, and nothing is shared; with ``required`` that is an error. Raises :class:`ConfigError` for a wrong argument,
    :class:`OpenSslRefused` if ``required``. No store is asked before the first handshake.
    """
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"share_sessions: an ssl.SSLContext, not {type(context).__name__}")
    if context in _taken and _taken[context].active:
        raise ConfigError("share_sessions: the sessions of this context are shared already")
    check_plain_name("server", server)
    check_plain_name("farm", farm)
    lifetime_s = int(_seconds("lifetime", lifetime, 1, MAX_LIFETIME_S))
    thread_limit_s, loop_limit_s = THREAD_LIMIT_S, LOOP_LIMIT_S
    if fetch_timeout is not None:
        thread_limit_s = loop_limit_s = _seconds("fetch_timeout", fetch_timeout, *FETCH_TIMEOUT_S)
    ring = keyring if isinstance(keyring, KeyRing) else KeyRing(_keys(keyring))

    make_places = _places_of(store, server, farm, loop_limit_s)
    shared = SharedSessions(
        context,
        SessionRepository(
            make_places, store_tag, home=server if isinstance(store, Peers) else None, put_limit_s=thread_limit_s
        ),
        SessionIds(ring, farm, server, os.urandom),
        RecordSealer(ring, farm, os.urandom),
        server=server,
        farm=farm,
        siblings=Siblings(siblings),
        lifetime_s=lifetime_s,
        thread_limit_s=thread_limit_s,
        loop_limit_s=loop_limit_s,
    )
    if not shared.active and required:
        raise OpenSslRefused(shared.why_off)
    if not shared.active:
        _log.warning("TLS sessions are not shared: %s", shared.why_off)
    _shared[context] = _taken[context] = shared
    return shared


def share_ticket_keys(
    context: ssl.SSLContext,
    *,
    store: str | Sequence[str],
    keyring: KeyRing | str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    period: float | str = DEFAULT_PERIOD_S,
    lifetime: float | str = DEFAULT_LIFETIME_S,
    siblings: Iterable[Iterable[str]] = (),
    required: bool = False,
) -> SharedTickets:
    """Let every server of the farm open the TLS tickets that the others gave out: shared keys, which change by
    themselves. Not take-once: a ticket opens as often as it is shown (see :mod:`coatcheck.tls.tickets`).

    ``store``, ``keyring``, ``farm``, ``siblings``, ``required``: as for :func:`share_sessions`; the store only keeps
    the keys, sealed, and no handshake asks it. ``period``: how long a key seals, 1 s to 24 h; ``lifetime``: how long a
    ticket opens after its key seals no more, 7 days at most together. All servers of a farm need the same ``period``.

    Waits a second at most for the store. Raises :class:`ConfigError`, and :class:`OpenSslRefused` if ``required``.
    """
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"share_ticket_keys: an ssl.SSLContext, not {type(context).__name__}")
    if context in _taken and _taken[context].active:
        raise ConfigError("share_ticket_keys: the sessions of this context are shared already")
    check_plain_name("farm", farm)
    period_s = _seconds("period", period, *TICKET_PERIOD_S)
    lifetime_s = _seconds("lifetime", lifetime, 1, MAX_LIFETIME_S - period_s)
    ring = keyring if isinstance(keyring, KeyRing) else KeyRing(_keys(keyring))
    keys = TicketKeys(int(period_s * 1000), int(lifetime_s * 1000), Siblings(siblings))
    if isinstance(store, Peers):
        raise ConfigError("share_ticket_keys: a store is needed; peers keep sessions, not keys")
    agreement = KeyAgreement(_places_of(store, "", farm, LOOP_LIMIT_S), keys, ring, farm)
    shared = SharedTickets(context, agreement, farm)
    if not shared.active and required:
        raise OpenSslRefused(shared.why_off)
    if not shared.active:
        _log.warning("TLS tickets are not shared: %s", shared.why_off)
    _taken[context] = shared
    return shared


def feed_proxies(
    files: ProxyFiles,
    *,
    store: str | Sequence[str],
    keyring: KeyRing | str | bytes | Sequence[str | bytes],
    farm: str = "farm",
    period: float | str = DEFAULT_PERIOD_S,
) -> KeyAgreement:
    """Keep the ticket keys of proxies those of the farm, from now on, in a thread; :meth:`KeyAgreement.close` ends it.

    The arguments are those of :func:`share_ticket_keys`. Raises :class:`ConfigError`.
    """
    check_plain_name("farm", farm)
    period_s = _seconds("period", period, *TICKET_PERIOD_S)
    ring = keyring if isinstance(keyring, KeyRing) else KeyRing(_keys(keyring))
    proxies = ProxyTickets(files)
    keys = TicketKeys(int(period_s * 1000), int(period_s * 1000), Siblings())
    if isinstance(store, Peers):
        raise ConfigError("feed_proxies: a store is needed; peers keep sessions, not keys")
    agreement = KeyAgreement(
        _places_of(store, "", farm, LOOP_LIMIT_S),
        keys,
        ring,
        farm,
        lambda at_ms: proxies.write(agreement.around(at_ms)),
    )
    agreement.start(FIRST_ROUND_S)
    return agreement


def _places_of(
    store: str | Sequence[str] | Peers, server: str, farm: str, timeout_s: float
) -> Callable[[], list[TakeOncePlace]]:
    """What makes the stores of a process; a wrong one is an error here."""
    if isinstance(store, Peers):
        store.check(server)
        names = [server, *store.servers]
        peers = store

        def make_places() -> list[TakeOncePlace]:
            return peers.places(server, timeout_s)
    else:
        addresses = parse_session_servers([store] if isinstance(store, str) else store, SCHEMES)
        if not addresses:
            raise ConfigError("share_sessions: name a store, such as redis://HOST")
        names = [address.name for address in addresses]

        def make_places() -> list[TakeOncePlace]:
            return [items_at(address, farm, timeout_s) for address in addresses]

    if len({store_tag(name) for name in names}) != len(set(names)):
        raise ConfigError("share_sessions: two stores have names with one tag; rename one of them")
    return make_places


def sessions_of(context: object) -> SharedSessions | None:
    """What :func:`share_sessions` made of this context, if it is shared."""
    shared = _shared.get(context) if isinstance(context, ssl.SSLContext) else None
    return shared if shared is not None and shared.active else None


def _seconds(name: str, given: float | str, fewest: float, most: float) -> float:
    try:
        seconds = parse_duration(given)
    except ValueError as wrong:
        raise ConfigError(f"{name}: {wrong} (got {shown(given)!r})") from None
    if not fewest <= seconds <= most:
        bounds = f"{format_duration(fewest)} to {format_duration(most)}"
        raise ConfigError(f"{name}: {bounds} (got {shown(given)!r})")
    return seconds


def _keys(given: object) -> tuple[bytes, ...]:
    keys = [given] if isinstance(given, str | bytes) else given
    if not isinstance(keys, Sequence) or not all(isinstance(key, str | bytes) for key in keys):
        raise ConfigError(f"keyring: a KeyRing, a key or several keys; {HOW_TO_MAKE_A_KEY}")
    return tuple(parse_key(key, "keyring") for key in keys)
