"""What each process of a farm is told at its start: on the inherited control channel, never in argv."""

from __future__ import annotations

import msgspec

from coatcheck.access import SessionAccess
from coatcheck.director.rules.settings import DirectorSettings
from coatcheck.farm.settings.farm_settings import HttpServer, Interface
from coatcheck.farm.settings.moving_in import MovingInSettings
from coatcheck.host_port import format_host_port
from coatcheck.session_server.table import DEFAULT_MAX_BYTES, DEFAULT_MAX_ENTRIES
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.routes import Sticky
from coatcheck.stores.session_server_url import SessionServerAddress

LOOPBACK = "127.0.0.1"


class Address(msgspec.Struct, frozen=True):
    """Where a process listens: a host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return format_host_port(self.host, self.port)


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What a session server needs to hand its entries over at a planned stop, and to take its predecessors' over."""

    farm: str
    run: str
    """Names this run of the farm; a file says at the end of which run it was written."""
    secrets: tuple[bytes, ...]
    primary: int
    give: str
    """The file to write."""
    take: tuple[str, ...]
    """Files to take over at this start."""
    last_run: str
    """The run that they must be of."""
    limit_s: float

    def __repr__(self) -> str:
        return f"Handover({self.give!r})"


class OutsideItems(msgspec.Struct, frozen=True):
    """Where the items of this farm's machines are, that may be taken once."""

    farm: str
    session_servers: tuple[SessionServerAddress, ...]
    limit_s: float
    """How long one call may take."""


class SessionServerRole(msgspec.Struct, frozen=True, tag="session-server", tag_field="role", kw_only=True):
    """An embedded session server."""

    name: str
    address: Address
    password: str
    handover: Handover | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    max_entries: int = DEFAULT_MAX_ENTRIES
    items: OutsideItems | None = None
    """Where it passes items on to, instead of keeping them."""

    def __repr__(self) -> str:
        return f"SessionServerRole({self.name!r}, {self.address})"


class EndsTls(msgspec.Struct, frozen=True, kw_only=True):
    """What a web server needs to end the TLS of its clients itself."""

    address: Address
    """Where directors bring it connections."""
    certificate: str
    key: str
    tickets: TicketOrders | None = None
    """How web servers share TLS sessions, if by ticket keys."""
    sessions: SessionOrders | None = None
    """How they share TLS sessions, if each is to be resumed once."""
    takeover: bool
    """Whether another web server can go on with a connection of this one."""
    limits: DirectorSettings = DirectorSettings()
    route_cookie: str


class WebServerRole(msgspec.Struct, frozen=True, tag="web-server", tag_field="role", kw_only=True):
    """A web server that runs the user's app."""

    name: str
    address: Address
    app: str
    factory: bool
    interface: Interface = "auto"
    threads: int = 8
    """Of a WSGI app."""
    server: HttpServer
    access_log: bool
    route_tag: str
    """The opaque name that the route cookie holds; it stays the same over restarts."""
    stop_grace_s: float
    sessions: SessionAccess
    credential: str
    """What directors prove to know, and this web server to them, where they are connected by TCP."""
    cookies: CookiePolicy = CookiePolicy()
    error_pages: str = ""
    """The directory with the operator's pages."""
    sticky: Sticky = "browser"
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose addresses are skipped where the app asks who its client is."""
    audit_file: str = ""
    """Where audit records go, if anywhere."""
    audit_max_bytes: int = 0
    ends_tls: EndsTls | None = None
    signals: str = ""
    """The file of logout signals: whom to tell when sessions end here."""
    moving_in: MovingInSettings | None = None
    """The store of before, whose sessions continue here."""

    def __repr__(self) -> str:
        return f"WebServerRole({self.name!r}, {self.address})"


class WebServerTarget(msgspec.Struct, frozen=True):
    """A web server as a director sees it."""

    name: str
    address: Address
    tag: str


class TicketOrders(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that all that end TLS in a farm seal and open tickets with, and nothing that they come from."""

    farm: str
    period_ms: int
    lifetime_ms: int
    keys: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    """By period, the sealing one first."""

    def __repr__(self) -> str:
        return f"TicketOrders({self.farm!r}, {len(self.keys)} periods)"


class SessionOrders(msgspec.Struct, frozen=True, kw_only=True):
    """Where the processes of a farm that end TLS keep its sessions, and what they seal them with: keys that open
    nothing else."""

    farm: str
    lifetime_s: int
    fetch_timeout_s: float
    stores: tuple[SessionServerAddress, ...]
    keys: tuple[bytes, ...]
    primary: int

    def __repr__(self) -> str:
        return f"SessionOrders({self.farm!r}, {self.stores!r})"


class DirectorRole(msgspec.Struct, frozen=True, tag="director", tag_field="role", kw_only=True):
    """A director worker; all workers of a farm accept from one socket."""

    name: str
    address: Address
    listener: int = -1
    """The descriptor of the socket that listens there, inherited from the supervisor."""
    upstreams: tuple[WebServerTarget, ...]
    credential: str
    """What the web servers prove to know, and this director to them, where they are connected by TCP."""
    route_cookie: str
    drained: tuple[str, ...] = ()
    """Web servers that get no requests from the start."""
    stop_grace_s: float = 10.0
    tls_certificate: str = ""
    tls_key: str = ""
    tickets: TicketOrders | None = None
    """How it shares TLS sessions, if by ticket keys."""
    sessions: SessionOrders | None = None
    """How it shares TLS sessions, if each is to be resumed once."""
    passes_tls: bool = False
    """Whether the web servers end TLS."""
    trusted_proxies: tuple[str, ...] = ()
    error_pages: str = ""
    limits: DirectorSettings = DirectorSettings()

    def __repr__(self) -> str:
        return f"DirectorRole({self.name!r}, {self.address})"


class SessionServiceRole(msgspec.Struct, frozen=True, tag="session-service", tag_field="role", kw_only=True):
    """A process of the session service."""

    name: str
    address: Address
    callers: str
    """The file of those who may ask."""
    signals: str = ""
    """The file of logout signals."""
    sessions: SessionAccess
    cookies: CookiePolicy = CookiePolicy()
    audit_file: str = ""
    audit_max_bytes: int = 0

    def __repr__(self) -> str:
        return f"SessionServiceRole({self.name!r}, {self.address})"


class MetricsRole(msgspec.Struct, frozen=True, tag="metrics", tag_field="role", kw_only=True):
    """The process that Prometheus asks for the counts of all."""

    name: str
    address: Address
    timeout_s: float
    """How long each process may take to say what it has counted."""


Role = SessionServerRole | WebServerRole | SessionServiceRole | DirectorRole | MetricsRole
