"""Every bound and time-out of the director's rules, with its default."""

from __future__ import annotations

import ipaddress

import msgspec

from coatcheck.director.rules.admission import Network
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import ConfigError


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules go by; times in seconds, sizes in bytes."""

    error_pages: ErrorPages = ErrorPages()
    """What the director's own answers look like."""
    route_cookie: str = "coatcheck-route"
    """Read under this name and under ``__Host-`` before it; the web servers set it."""
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
    held_response_bytes: int = 64 * 1024
    """A response of known length up to this leaves in one piece, so that it can still be had elsewhere."""

    # Time-outs
    header_read_s: float = 10.0
    rate_window_s: float = 30.0
    """Over which the least rates are measured: a client may pause for about so long."""
    idle_s: float = 60.0
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
    """With TLS: the ``max-age`` of Strict-Transport-Security (RFC 6797) where the app sets none; 0: not sent."""

    # Health checks
    check_every_s: float = 0.25
    check_timeout_s: float = 0.25
    rise: int = 1
    fall: int = 2


def trusted_networks(limits: Limits) -> tuple[Network, ...]:
    """The networks whose forwarding headers are believed.

    Raises ConfigError for one that is no network.
    """
    networks: list[Network] = []
    for network in limits.trusted_proxies:
        try:
            networks.append(ipaddress.ip_network(network))
        except ValueError as error:
            raise ConfigError(f"director: trusted_proxies: {error}") from error
    return tuple(networks)
