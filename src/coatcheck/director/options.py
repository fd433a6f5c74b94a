"""Every limit and time-out of the director, with its default."""

from __future__ import annotations

import ipaddress
import re
import ssl
from typing import Final

import msgspec

from coatcheck.director.rules.admission import Network
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import ConfigError
from coatcheck.peers.dial import Door

_TAG: Final = re.compile(r"[A-Za-z0-9._~!-]{1,128}")
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_MAY_BE_ZERO: Final = frozenset({"port", "hsts_s", "resend_after_s", "min_body_rate", "min_read_rate"})
_MOST_SENDS: Final = 2
"""Of an idempotent request. It has the effect of one (RFC 9110, 9.2.2), and still costs each server its work."""


class WebServer(msgspec.Struct, frozen=True):
    """One web server: its name, its address, and the opaque tag that the route cookie carries for it.

    The address is a host and a port, or the path of a Unix socket, which must be our own user's. With a
    ``credential`` no request is sent over TCP before both ends have proved that they know it.
    """

    name: str
    host: str
    port: int
    tag: str
    path: str = ""
    credential: str = ""

    @property
    def door(self) -> Door:
        """Where, and as whom, it is reached."""
        return Door(self.name, path=self.path, host=self.host, port=self.port, credential=self.credential)

    def __repr__(self) -> str:
        return f"WebServer({self.name!r}, {self.door})"


class DirectorOptions(msgspec.Struct, frozen=True):
    """What the director serves and within which bounds; times in seconds, sizes in bytes."""

    servers: tuple[WebServer, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    tls: ssl.SSLContext | None = None
    backlog: int = 4096
    error_pages: ErrorPages = ErrorPages()
    """What the director's own answers look like."""
    route_cookie: str = "coatcheck-route"
    """Read under this name and under ``__Host-`` before it; the web servers set it."""
    health_path: str = "/.well-known/coatcheck/health"
    trusted_proxies: tuple[str, ...] = ()
    """Networks (``10.0.0.0/8``) whose ``X-Forwarded-*`` and ``Forwarded`` headers are believed and extended."""

    # Bounds
    max_connections: int = 4096
    """Of clients, counted from their accept, WebSockets included. For one more an idle one is closed; if none is idle,
    it is answered 503 and closed. Also bounds the connections to web servers. Fewer, if the system allows fewer
    descriptors than twice as many and the reserved ones."""
    max_connections_per_address: int = 1024
    """Of one client's address (IPv6: network of 64 bits); behind a trusted proxy, requests and WebSockets of one."""
    max_handshakes: int = 512
    """TLS handshakes under way; for one more the oldest ends."""
    max_websockets: int = 2048
    """One more is answered 503, so that they leave room for requests."""
    reserved_descriptors: int = 128
    """Kept back for the event loop, the health checks, the control channel and the log."""
    min_body_rate: int = 240
    """Bytes a second of a request's body that is still coming, on the mean of ``rate_window_s``; 0: any."""
    min_read_rate: int = 240
    """Bytes a second that a client takes of a response that waits for it; 0: any."""
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    max_response_head_bytes: int = 64 * 1024
    max_idle_upstream: int = 512
    """Unused connections kept to each web server."""
    max_waiting: int = 4096
    """Requests that wait for a web server to come back, or to be busy no more; one more is answered 503."""
    max_sends: int = 2
    """How often one idempotent request is sent in all, 1 or 2. Others are sent once."""
    kept_body_bytes: int = 64 * 1024
    """Of a request body, kept for sending it again; also what is taken before a web server is connected."""
    buffer_bytes: int = 64 * 1024
    """High-water mark of each connection's write buffer; beyond it the other side is not read."""
    held_response_bytes: int = 64 * 1024
    """A response of known length up to this leaves in one piece, so that it can still be had elsewhere."""

    # Time-outs
    header_read_s: float = 10.0
    tls_handshake_s: float = 10.0
    rate_window_s: float = 30.0
    """Over which the least rates are measured: a client may pause for about so long."""
    idle_s: float = 60.0
    connect_s: float = 1.0
    """A web server that accepts no connection for so long is busy."""
    first_byte_s: float = 30.0
    between_bytes_s: float = 60.0
    """Within a body, either way; a stream of events must send something more often."""
    held_response_s: float = 0.2
    upstream_idle_s: float = 4.0
    """Shorter than the web server's own keep-alive (uvicorn: 5 s), so that it is we who close."""
    linger_s: float = 1.0
    tunnel_idle_s: float = 3600.0
    tunnel_drain_s: float = 60.0
    """How long WebSockets of a web server that drains may go on."""
    no_server_wait_s: float = 2.0
    resend_after_s: float = 20.0
    """A request without an answer for so long goes to another web server, if its own answers no health check either
    and it may be sent twice, or was not sent yet. Below ``first_byte_s``; 0: never."""
    hsts_s: float = 0.0
    """With ``tls``: the ``max-age`` of Strict-Transport-Security (RFC 6797) where the app sets none; 0: not sent."""
    tick_s: float = 0.1
    """How often deadlines are looked at, and so how exact the time-outs are."""

    # Health checks
    check_every_s: float = 0.25
    check_timeout_s: float = 0.25
    rise: int = 1
    fall: int = 2


def checked_options(options: DirectorOptions) -> DirectorOptions:
    """The options themselves, if they make sense.

    Raises ConfigError with one line that names the setting.
    """
    if not options.servers:
        raise ConfigError("director: servers is empty; name at least one web server")
    for what, values in (("name", [s.name for s in options.servers]), ("tag", [s.tag for s in options.servers])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f"director: two web servers have the {what} {twice[0]!r}")
    for server in options.servers:
        if not _TAG.fullmatch(server.tag):
            raise ConfigError(f"director: the tag of {server.name!r} is not 1 to 128 cookie-safe characters")
        if not server.path and not 0 < server.port < 65536:
            raise ConfigError(f"director: the port of {server.name!r} is not between 1 and 65535")
    if not _COOKIE_NAME.fullmatch(options.route_cookie):
        raise ConfigError(f"director: route_cookie {options.route_cookie!r} is no cookie name")
    if not re.fullmatch(r"/[!-~]*", options.health_path):
        raise ConfigError(f"director: health_path {options.health_path!r} is no path")
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if field.type in (int, float, "int", "float") and field.name not in _MAY_BE_ZERO and value <= 0:
            raise ConfigError(f"director: {field.name} is {value}; it must be above 0")
        if field.name in _MAY_BE_ZERO and value < 0:
            raise ConfigError(f"director: {field.name} is {value}; it must be 0 or above")
    if options.max_sends > _MOST_SENDS:
        raise ConfigError(f"director: max_sends is {options.max_sends}; it must be 1 or {_MOST_SENDS}")
    if options.first_byte_s <= options.resend_after_s:
        raise ConfigError(
            f"director: resend_after_s is {options.resend_after_s}; it must be below first_byte_s "
            f"({options.first_byte_s}), or 0"
        )
    trusted_networks(options)
    return options


def trusted_networks(options: DirectorOptions) -> tuple[Network, ...]:
    """The networks whose forwarding headers are believed.

    Raises ConfigError for one that is no network.
    """
    networks: list[Network] = []
    for network in options.trusted_proxies:
        try:
            networks.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise ConfigError(f"director: trusted_proxies: {error}") from error
    return tuple(networks)
