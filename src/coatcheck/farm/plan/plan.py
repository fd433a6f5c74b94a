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
from coatcheck.farm.plan.roles import Address, DirectorRole, EndsTls, SessionServerRole, WebServerRole, WebServerTarget
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.stores.session_server_url import SessionServerAddress, parse_session_servers

ROUTE_SUFFIX: Final = "-route"


class Plan(msgspec.Struct, frozen=True):
    """All processes of a farm. The addresses stay the same over restarts: the others know them."""

    session_servers: tuple[SessionServerRole, ...]
    outside: tuple[SessionServerAddress, ...]
    """Session servers that are not ours to start."""
    web_servers: tuple[WebServerRole, ...]
    directors: tuple[DirectorRole, ...]


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
    copies_at = outside or tuple(SessionServerAddress(role.name, _url(role), proves_its_name=True) for role in embedded)
    end_to_end = settings.tls == "end-to-end"
    names = [f"web-{n}" for n in range(1, settings.web + 1)]
    web_servers = tuple(
        WebServerRole(
            name=name,
            address=internal.take(name),
            app=settings.app,
            factory=settings.factory,
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
            audit_file=str(Path(settings.audit_dir or Path(settings.run_dir, "audit")).absolute() / f"{name}.jsonl"),
            audit_max_bytes=settings.audit_max_bytes,
            ends_tls=_ends_tls(settings, internal.take(f"{name}-tls")) if end_to_end else None,
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
        )
        for n in range(1, settings.director_workers + 1)
    )
    return Plan(embedded, outside, web_servers, directors)


def _ends_tls(settings: FarmSettings, address: Address) -> EndsTls:
    return EndsTls(
        address=address,
        certificate=settings.tls_certificate,
        key=settings.tls_key,
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
    )


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
