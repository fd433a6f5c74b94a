"""A response in pieces that its web server can end: server-sent events, say, whose session is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from coatcheck.web.open_websocket import UNREAD_S, HungUp

_LENGTH: Final = b"content-length"
_KNOWN: Final = frozenset({_LENGTH, b"cache-control", b"etag", b"last-modified"})
_KNOWN_LENGTHS: Final = frozenset(map(len, _KNOWN))
BODILESS: Final = frozenset({204, 205, 304})
"""Statuses of responses without a body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5)."""


def has_length(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response says how long it is: then it runs to its end, for a shorter one would be a broken one."""
    return any(len(name) == len(_LENGTH) and name.lower() == _LENGTH for name, _ in headers)


def may_read_later(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response may be a stream that reads the session when its head has long left: then caches must be kept
    away beforehand.

    Not so if it says how long it is, or how it may be cached or recognised: the app knows what it sends.
    """
    if status in BODILESS:
        return False
    return not any(len(name) in _KNOWN_LENGTHS and name.lower() in _KNOWN for name, _ in headers)


class OpenStream:
    """Stands between the app and the server from the first piece on; :meth:`end` sends the last one."""

    __slots__ = ("_lock", "_send", "over")

    def __init__(self, send: Callable[[Any], Awaitable[None]]) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self.over = False

    async def send(self, message: Any) -> None:
        """Pass on what the app sends; after the end, it learns so by OSError (ASGI, "Send after disconnect")."""
        async with self._lock:
            if self.over:
                raise HungUp("the web server has ended this response: its session is over")
            await self._send(message)

    async def end(self) -> None:
        """End the response in order, unless its client reads nothing: then nothing more is sent to it."""
        try:
            async with asyncio.timeout(UNREAD_S), self._lock:
                self.over = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self.over = True
