"""Notices within one process: who listens for which web server."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger("coatcheck.stores")

OnMessage = Callable[[bytes], None]


class Bulletin:
    """Subscribers by server ID; a message without subscribers is lost, as the port allows."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, list[OnMessage]] = {}

    def subscribe(self, server_id: bytes, on_message: OnMessage) -> bool:
        """Add a listener; answers whether it is the first of this server ID."""
        listeners = self._listeners.setdefault(server_id, [])
        listeners.append(on_message)
        return len(listeners) == 1

    def publish(self, server_id: bytes, message: bytes) -> None:
        """Hand the message to each listener; one that raises is logged, and the others still get it."""
        for on_message in self._listeners.get(server_id, ()):
            try:
                on_message(message)
            except Exception:
                logger.exception("a listener for notices failed")

    def server_ids(self) -> list[bytes]:
        return list(self._listeners)

    def clear(self) -> None:
        self._listeners.clear()
