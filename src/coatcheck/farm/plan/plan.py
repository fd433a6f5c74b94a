"""Which processes a farm has, and what each is told: made once at the start from settings and keys."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from coatcheck.access import SessionAccess
from coatcheck.farm.files.keys import FarmKeys
from coatcheck.farm.plan.ports import InternalAddresses
from coatcheck.farm.plan.roles import (
    Address,
    DirectorRole,
    EndsTls,
    MetricsRole,
    OutsideItems,
    SessionOrders,
    SessionServerRole,
    SessionServiceRole,
    WebServerRole,
    WebServerTarget,
)
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.host_port import parse_host_port
from coatcheck.stores.session_server_url import SessionServerAddress, parse_session_servers
from coatcheck.tokens.keyring import KeyRing

ROUTE_SUFFIX: Final = "-route"
SESSION_SERVICE: Final = "session-service"
METRICS: Final = "metrics"
TLS_SESSIONS: Final = "tls-sessions"
FORWARDED_SHARE: Final = 0.16
"""Of what a handshake waits for its session, one call of the process that asks outside servers: all others wait there
meanwhile."""
"""The process that keeps the TLS sessions of all directors, where each is resumed once."""


class Plan(msgspec.Struct, frozen=True):
    """All processes of a farm. The addresses stay the same over restarts: the others know them."""

    session_servers: tuple[SessionServerRole, ...]
    outside: tuple[SessionServerAddress, ...]
    """Session servers that are not ours to start."""
    web_servers: tuple[WebServerRole, ...]
    session_services: tuple[SessionServiceRole, ...]
    """One, or none."""
    tls_sessions: tuple[SessionServerRole, ...]
    """One, which has no room for sessions of the app, or none."""
    directors: tuple[DirectorRole, ...]
    metrics: tuple[MetricsRole, ...]
    """One, or none."""


def make_plan(settings: FarmSettings, keys: FarmKeys, public: Address, internal: InternalAddresses) -> Plan:
    """Give every process its name, its address and its orders.

    Raises:
        ConfigError: no free port.
    """
    outside = parse_session_servers(settings.session_server)
    credential = _internal_credential(keys)
    embedded = tuple(
        SessionServerRole(
            name=name,
            address=internal.take(name),
            password=keys.session_server_password,
            max_bytes=settings.session_server_max_bytes,
            max_entries=settings.session_server_max_entries,
        )
        for name in (f"session-{n}" for n in range(1, 1 + (0 if outside else settings.session_servers)))
    )
    copies_at = outside or tuple(_address(role) for role in embedded)
    tls_sessions = (_tls_sessions(settings, keys, outside, internal),) if settings.keeps_tls_sessions else ()
    # Web servers may ask the session servers themselves.
    items_at = tuple(_address(role) for role in tls_sessions) or copies_at
    session_orders = _session_orders(settings, items_at, keys) if settings.stores_tls_sessions else None
    end_to_end = settings.tls == "end-to-end"
    names = [f"web-{n}" for n in range(1, settings.web + 1)]
    web_servers = tuple(
        WebServerRole(
            name=name,
            address=internal.take(name),
            app=settings.app,
            factory=settings.factory,
            interface=settings.interface,
            threads=settings.threads,
            server=settings.server,
            access_log=settings.access_log,
            route_tag=_route_tag(settings.name, name, keys),
            stop_grace_s=settings.stop_grace_s,
            sessions=_session_access(settings, name, copies_at, keys),
            cookies=settings.cookie,
            error_pages=_absolute(settings.error_pages),
            sticky=settings.sticky if settings.web > 1 else "session",
            credential=credential,
            trusted_proxies=settings.trusted_proxy,
            audit_file=_audit_file(settings, name),
            audit_max_bytes=settings.audit_max_bytes,
            ends_tls=_ends_tls(settings, internal.take(f"{name}-tls"), session_orders) if end_to_end else None,
            signals=_absolute(settings.signals),
            moving_in=settings.moving_in,
        )
        for name in names
    )
    upstreams = tuple(
        WebServerTarget(role.name, role.ends_tls.address if role.ends_tls else role.address, role.route_tag)
        for role in web_servers
    )
    directors = tuple(
        DirectorRole(
            name=f"director-{n}",
            address=public,
            upstreams=upstreams,
            credential=credential,
            route_cookie=settings.cookie.name + ROUTE_SUFFIX,
            stop_grace_s=settings.stop_grace_s,
            tls_certificate="" if end_to_end else settings.tls_certificate,
            tls_key="" if end_to_end else settings.tls_key,
            passes_tls=end_to_end,
            trusted_proxies=settings.trusted_proxy,
            error_pages=_absolute(settings.error_pages),
            limits=settings.director,
            sessions=None if end_to_end else session_orders,
        )
        for n in range(1, settings.director_workers + 1)
    )
    services = _session_services(settings, copies_at, keys)
    return Plan(embedded, outside, web_servers, services, tls_sessions, directors, _metrics(settings))


def _metrics(settings: FarmSettings) -> tuple[MetricsRole, ...]:
    if not settings.metrics:
        return ()
    address = Address(*parse_host_port(settings.metrics, "metrics"))
    return (MetricsRole(name=METRICS, address=address, timeout_s=settings.metrics_timeout_s),)


def _session_services(
    settings: FarmSettings, copies_at: tuple[SessionServerAddress, ...], keys: FarmKeys
) -> tuple[SessionServiceRole, ...]:
    if not settings.service:
        return ()
    host, port = parse_host_port(settings.service, "service")
    service = SessionServiceRole(
        name=SESSION_SERVICE,
        address=Address(host, port),
        callers=_absolute(settings.service_callers),
        signals=_absolute(settings.signals),
        sessions=_session_access(settings, SESSION_SERVICE, copies_at, keys),
        cookies=settings.cookie,
        audit_file=_audit_file(settings, SESSION_SERVICE),
        audit_max_bytes=settings.audit_max_bytes,
    )
    return (service,)


def _audit_file(settings: FarmSettings, server: str) -> str:
    return str(Path(settings.audit_dir or Path(settings.run_dir, "audit")).absolute() / f"{server}.jsonl")


def _tls_sessions(
    settings: FarmSettings, keys: FarmKeys, outside: tuple[SessionServerAddress, ...], internal: InternalAddresses
) -> SessionServerRole:
    """A session server for items alone, with a password of its own: directors know it, and not that of the others."""
    password = blake2b(b"TLS sessions of directors", key=keys.session_server_password.encode()[:64]).hexdigest()
    shared = shared_by_machines(outside)
    return SessionServerRole(
        name=TLS_SESSIONS,
        address=internal.take(TLS_SESSIONS),
        password=password,
        max_entries=1,
        items=OutsideItems(settings.name, shared, settings.tls_fetch_timeout_s * FORWARDED_SHARE) if shared else None,
    )


def shared_by_machines(outside: tuple[SessionServerAddress, ...]) -> tuple[SessionServerAddress, ...]:
    """The session servers that other machines may ask, too; a file belongs to one machine."""
    return tuple(address for address in outside if address.parts.scheme != "sqlite")


def _session_orders(settings: FarmSettings, stores: tuple[SessionServerAddress, ...], keys: FarmKeys) -> SessionOrders:
    secrets, primary = tls_session_ring(keys)
    return SessionOrders(
        farm=settings.name,
        lifetime_s=int(settings.tls_session_lifetime_s),
        fetch_timeout_s=settings.tls_fetch_timeout_s,
        stores=stores,
        keys=secrets,
        primary=primary,
    )


def tls_session_ring(keys: FarmKeys) -> tuple[tuple[bytes, ...], int]:
    """What TLS sessions are sealed with: derived from the key ring, and no way back, for directors may not have it."""
    return KeyRing(keys.keys, keys.primary).derived("tls sessions of directors")


def _ends_tls(settings: FarmSettings, address: Address, sessions: SessionOrders | None) -> EndsTls:
    return EndsTls(
        address=address,
        certificate=settings.tls_certificate,
        key=settings.tls_key,
        sessions=sessions,
        takeover=settings.takeover,
        limits=settings.director,
        route_cookie=settings.cookie.name + ROUTE_SUFFIX,
    )


def _session_access(
    settings: FarmSettings, server: str, copies_at: tuple[SessionServerAddress, ...], keys: FarmKeys
) -> SessionAccess:
    return SessionAccess(
        farm=settings.name,
        server=server,
        session_servers=copies_at,
        keys=keys.keys,
        primary_key=keys.primary,
        settings=settings.session,
        sites=settings.sites,
    )


def _address(role: SessionServerRole) -> SessionServerAddress:
    return SessionServerAddress(role.name, _url(role), proves_its_name=True)


def _url(role: SessionServerRole) -> str:
    where = quote(role.address.path) if role.address.path else str(role.address)
    return f"coatcheck://:{quote(role.password, safe='')}@{where}"


def _internal_credential(keys: FarmKeys) -> str:
    """What directors and web servers prove to each other; whoever learns it has not learned the password."""
    return blake2b(b"director to web server", key=keys.session_server_password.encode()[:64]).hexdigest()


def _absolute(directory: str) -> str:
    return str(Path(directory).absolute()) if directory else ""


def _route_tag(farm: str, server: str, keys: FarmKeys) -> str:
    """Opaque outside, the same over restarts inside."""
    return blake2b(f"{farm}\x00{server}".encode(), key=keys.keys[0][:64], digest_size=6).hexdigest()
