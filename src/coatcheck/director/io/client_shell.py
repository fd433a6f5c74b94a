"""What every shell does that holds a client's transport and a link to a web server, when its machine asks for it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from coatcheck.director.io.server_link import ServerLink
from coatcheck.director.rules.actions import Order

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class ClientShell(asyncio.Protocol):
    """The orders that concern one transport or link, and nothing else."""

    __slots__ = ("_link", "connecting", "transport")

    def __init__(self) -> None:
        self._link: ServerLink | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.transport = cast(asyncio.Transport, None)

    def _leave_server(self) -> None:
        link, self._link = self._link, None
        self.connecting = None
        if link is not None:
            link.drop()

    def _pause_server(self) -> None:
        if self._link is not None and not self._link.transport.is_closing():
            self._link.transport.pause_reading()

    def _resume_server(self) -> None:
        if self._link is not None and not self._link.transport.is_closing():
            self._link.transport.resume_reading()

    def _pause_client(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume_client(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _abort_client(self) -> None:
        self.transport.abort()

    def _reset_client(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


SHELL_ORDERS: Final[dict[Order, Callable[[Any], None]]] = {
    Order.LEAVE_SERVER: ClientShell._leave_server,
    Order.PAUSE_SERVER: ClientShell._pause_server,
    Order.RESUME_SERVER: ClientShell._resume_server,
    Order.PAUSE_CLIENT: ClientShell._pause_client,
    Order.RESUME_CLIENT: ClientShell._resume_client,
    Order.ABORT_CLIENT: ClientShell._abort_client,
    Order.RESET_CLIENT: ClientShell._reset_client,
}
"""By a :class:`ClientShell`."""
