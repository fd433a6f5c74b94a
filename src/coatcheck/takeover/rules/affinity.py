"""Which web server gets a connection whose requests the director cannot read: rules only.

All connections of one client go to one web server, so that its sessions stay where they are; unless that one has far
more than its share, as when many clients come from one address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coatcheck.director.rules.routing import Health, ServerState, by_hash

MOST_OF_SHARE: Final = 1.25
"""A server with more than this, of what each would have if all had the same, is no client's first choice."""
_ALWAYS: Final = 4
"""Connections that no server is too busy for."""


def preferred(client: str, servers: Sequence[ServerState]) -> ServerState | None:
    """The web server of a client's address : the same as long as the fit ones are the same."""
    fit = [server for server in servers if server.health is Health.HEALTHY and not server.draining]
    if not fit:
        return None
    bound = max(_ALWAYS, MOST_OF_SHARE * (1 + sum(server.in_flight for server in fit)) / len(fit))
    roomy = [server for server in fit if server.in_flight < bound]
    return by_hash(client.encode(), roomy or fit)
