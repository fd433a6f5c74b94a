"""What the director's rules go by: what an operator may set, and the bounds that nobody needs to."""

from __future__ import annotations

import ipaddress

from coatcheck.director.rules.admission import Network
from coatcheck.director.rules.settings import DirectorSettings
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import ConfigError


class Limits(DirectorSettings, frozen=True, kw_only=True):
    """What the rules go by; times in seconds, sizes in bytes."""

    error_pages: ErrorPages = ErrorPages()
    """What the director's own answers look like."""
    route_cookie: str = "coatcheck-route"
    """Read under this name and under ``__Host-`` before it; the web servers set it."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (``10.0.0.0/8``) whose ``X-Forwarded-*`` and ``Forwarded`` headers are believed and extended."""

    # Bounds
    max_headers: int = 100
    max_response_head_bytes: int = 64 * 1024
    max_idle_upstream: int = 512
    """Unused connections kept to each web server."""

    # Time-outs
    websocket_close_s: float = 10.0
    """How long a client may take to answer a close frame."""
    linger_s: float = 1.0
    tunnel_drain_s: float = 60.0
    """How long WebSockets of a web server that drains may go on."""

    def __post_init__(self) -> None:
        """Bounds are for what operators set; who embeds a director may go beyond them (``checked_options`` judges)."""


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
