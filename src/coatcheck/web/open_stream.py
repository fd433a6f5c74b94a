"""A response in pieces that its web server can end: server-sent events, say, whose session is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from coatcheck.web.open_websocket import UNREAD_S, HungUp

_LENGTH: Final = b"content-length"


def has_length(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response says how long it is: then it runs to its end, for a shorter one would be a broken one."""
    return any(len(name) == len(_LENGTH) and name.lower() == _LENGTH for name, _ in headers)


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
