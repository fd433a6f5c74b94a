"""One connection of the HTTP server, and how long its peer may keep it without doing anything (uvicorn, h11)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S: Final = 10.0
"""From the connection, or the first byte of a further request, to the end of the request's head."""
SEND_TIMEOUT_S: Final = 30.0
"""For a peer that does not read its answer."""


class BoundedConnection(H11Protocol):
    """Gives up peers that send no whole head, or read no answer.

    uvicorn waits for them for ever; as many as there may be connections would shut everybody else out.
    """

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._give(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._between_requests():
            self._take_back()
        elif self._patience is None:
            self._give(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_back()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._take_back()
        self._give(SEND_TIMEOUT_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._take_back()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._bound_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._bound_closing()

    def _bound_closing(self) -> None:
        """Closing waits for the peer to read what is left."""
        if self.transport.is_closing():
            self._take_back()
            self._give(SEND_TIMEOUT_S)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give(self, patience_s: float) -> None:
        self._patience = self.loop.call_later(patience_s, self.transport.abort)

    def _take_back(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
