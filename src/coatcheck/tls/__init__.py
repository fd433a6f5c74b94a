"""TLS sessions that any server of a farm can resume: ``coatcheck.tls.share_sessions`` (docs/tls.md)."""

from __future__ import annotations

from coatcheck.tls.ahead import new_event_loop
from coatcheck.tls.client import ResumingContext, resuming_context
from coatcheck.tls.doors import server_context
from coatcheck.tls.entrance import feed_proxies, share_sessions, share_ticket_keys
from coatcheck.tls.openssl import OpenSslRefused
from coatcheck.tls.peers import Peers
from coatcheck.tls.proxy_tickets import ProxyFiles
from coatcheck.tls.sharing import SharedSessions
from coatcheck.tls.tickets import SharedTickets

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
