"""What carries a client's bytes: its transport, and, with TLS, the one of the socket beneath it."""

from __future__ import annotations

import asyncio
from typing import Final

_DRAIN_POLL_S: Final = 0.1
"""How often is looked whether all has left that a ``close_notify`` has to come behind."""


class ClientWire:
    """A client's transport, and how much of what was written to it has not left yet.

    With TLS there are two transports, and each buffers: what the upper one has handed down has not left.
    """

    __slots__ = ("_beneath", "_closes", "_loop", "transport")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, beneath: asyncio.Transport | None
    ) -> None:
        self._loop = loop
        self.transport = transport
        self._beneath = beneath
        self._closes = False

    @property
    def is_tls(self) -> bool:
        """Whether it is encrypted."""
        return self._beneath is not None

    def unsent(self) -> int:
        """How many bytes wait to leave; a ``close_notify`` that waits for them counts as one."""
        return self._waiting() + self._closes

    def _waiting(self) -> int:
        waiting = self.transport.get_write_buffer_size()
        return waiting if self._beneath is None else waiting + self._beneath.get_write_buffer_size()

    def close(self) -> None:
        """Close when what waits has left; who asked for it has a deadline for that, and then aborts.

        The event loops' TLS takes one byte that comes behind our ``close_notify`` for an attack, and drops what has
        not left. So that is written last, and until then the client is still read.
        """
        beneath = self._beneath
        self._closes = beneath is not None and not beneath.is_closing() and self._waiting() > 0
        if self._closes:
            self._loop.call_later(_DRAIN_POLL_S, self.close)
        else:
            self.transport.close()
