"""What the rules ask of a shell: the words in which a connection, a tunnel and the traffic say what is to be done.

A shell carries them out in their order and decides nothing. What comes of them it reports as events.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum

import msgspec

from coatcheck.director.rules.routing import Health, ServerState


class ToClient(msgspec.Struct, frozen=True, gc=False):
    """Write to the client."""

    data: bytes


class ToServer(msgspec.Struct, frozen=True, gc=False):
    """Write to the web server that was reached."""

    data: bytes


class Reach(msgspec.Struct, frozen=True, gc=False):
    """Have a connection to a web server: one that waits unused, or a new one.

    The shell answers with ``connected`` or ``not_connected``, at once or later.
    """

    server: ServerState
    certain: bool
    """For a request that must not be sent twice: of an unused one, ask the kernel whether it still stands."""
    fresh: bool
    """A new one only."""


class ReleaseServer(msgspec.Struct, frozen=True, gc=False):
    """The response has ended: the connection to the web server is no longer this client's."""

    keep: bool
    """Whether another request may use it."""


class Order(Enum):
    """What is to be done and needs no further word."""

    LEAVE_SERVER = "abort the connection to the web server; one that is still being opened is kept for others"
    END_SERVER = "the web server's process has ended: read what is left of what it said, and report `server_ended`"
    PAUSE_SERVER = "read no more from the web server"
    RESUME_SERVER = "read from the web server again"
    PAUSE_CLIENT = "read no more from the client"
    RESUME_CLIENT = "read from the client again"
    END_CLIENT = "end our side towards the client (FIN); what it sends is still read"
    CLOSE_CLIENT = "close the client's connection after what is still to be written; with TLS, read it until then"
    ABORT_CLIENT = "drop the client's connection now"
    RESET_CLIENT = "drop the client's connection so that it looks like a break (RST)"
    GO_ON = "report `go_on` in the next round of the event loop"
    JOIN = "the connection has become a tunnel: hand both ends to it"


Action = ToClient | ToServer | Reach | ReleaseServer | Order


class TunnelSide(Enum):
    """One of a tunnel's two ends."""

    CLIENT = "client"
    SERVER = "server"


class TunnelOrder(Enum):
    """What is to be done with one end of a tunnel."""

    PAUSE = "read no more from it"
    RESUME = "read from it again"
    END = "end our side towards it (FIN)"
    CLOSE = "close it after what is still to be written"
    ABORT = "drop it now"


class AtEnd(msgspec.Struct, frozen=True, gc=False):
    """Do something with one end of a tunnel."""

    side: TunnelSide
    order: TunnelOrder


TunnelAction = ToClient | ToServer | AtEnd


class CheckNow(msgspec.Struct, frozen=True, gc=False):
    """Check a web server's health now, without waiting for the next turn."""

    server: ServerState


class CloseUnused(msgspec.Struct, frozen=True, gc=False):
    """Close the unused connections to a web server; ``None``: to all."""

    server: ServerState | None


class HealthChanged(msgspec.Struct, frozen=True, gc=False):
    """Tell the operator what is thought of a web server now, and why."""

    server: ServerState
    health: Health
    why: str


class DropHandshake(msgspec.Struct, frozen=True, gc=False):
    """End a TLS handshake that is under way."""

    handshake: Hashable
