"""TLS sessions that any server of a farm can resume: ``coatcheck.tls.share_sessions`` (docs/tls.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coatcheck.tls.ahead import new_event_loop
    from coatcheck.tls.client import ResumingContext, resuming_context
    from coatcheck.tls.doors import server_context
    from coatcheck.tls.entrance import feed_proxies, share_sessions, share_ticket_keys
    from coatcheck.tls.openssl import OpenSslRefused
    from coatcheck.tls.peers import Peers
    from coatcheck.tls.proxy_tickets import ProxyFiles
    from coatcheck.tls.sharing import SharedSessions
    from coatcheck.tls.tickets import SharedTickets

_HOMES = {
    "OpenSslRefused": "openssl",
    "Peers": "peers",
    "ProxyFiles": "proxy_tickets",
    "ResumingContext": "client",
    "SharedSessions": "sharing",
    "SharedTickets": "tickets",
    "feed_proxies": "entrance",
    "new_event_loop": "ahead",
    "resuming_context": "client",
    "server_context": "doors",
    "share_sessions": "entrance",
    "share_ticket_keys": "entrance",
}

__all__ = [
    "OpenSslRefused",
    "Peers",
    "ProxyFiles",
    "ResumingContext",
    "SharedSessions",
    "SharedTickets",
    "feed_proxies",
    "new_event_loop",
    "resuming_context",
    "server_context",
    "share_sessions",
    "share_ticket_keys",
]


def __getattr__(name: str) -> Any:
    """As in ``coatcheck`` itself: a director that is told its ticket keys needs no store, and imports none."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coatcheck.tls' has no attribute {name!r}")
    return getattr(import_module(f"coatcheck.tls.{_HOMES[name]}"), name)
