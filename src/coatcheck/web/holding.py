"""What the middleware and a durable WebSocket leave for each other in the scope."""

from __future__ import annotations

from typing import Final

import msgspec

from coatcheck.durable_words import HEADER, read_going_on
from coatcheck.sessions.durable import SocketState
from coatcheck.sessions.opened import Opened
from coatcheck.web.interface import Header, Scope

HOLDING_KEY: Final = "coatcheck.holding"
"""Where in the scope of a WebSocket the :class:`HeldWebSocket` is."""


class HeldWebSocket(msgspec.Struct):
    """``offered``: whether a director can hold the WebSocket. ``ticket``: if another web server had it, for its
    session; ``have``: so many of that one's answers have left.

    ``socket`` and ``left``: which one it is, and what is stored of it. ``accepted``: whether the app has opted in.
    """

    opened: Opened
    offered: bool = False
    ticket: bytes = b""
    have: int = 0
    socket: bytes = b""
    left: SocketState | None = None
    accepted: bool = False

    def header(self) -> list[Header]:
        """What the director is told with the acceptance."""
        if not self.accepted:
            return []
        return [(HEADER, self.opened.home.ticket(self.opened, self.socket))]


def holding_for(scope: Scope, opened: Opened, *, believed: bool) -> HeldWebSocket:
    """From the request's headers, where a director is in front (``believed``); the app does not see them."""
    values = [value for name, value in scope["headers"] if name == HEADER]
    if values:
        scope["headers"] = [header for header in scope["headers"] if header[0] != HEADER]
    holding = scope[HOLDING_KEY] = HeldWebSocket(opened)
    if values and believed:
        holding.offered = True
        going_on = read_going_on(values[0])
        if going_on is not None:
            holding.have, holding.ticket = going_on
    return holding
