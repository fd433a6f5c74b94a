"""A WebSocket that its web server can end: it would outlast any drain, and its client can come back elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

SERVICE_RESTART: Final = 1012
"""The close code that asks a client to connect again (IANA registry of RFC 6455, 11.7)."""

UNREAD_S: Final = 1.0
"""A client that reads nothing keeps the app no longer than this."""

Message = MutableMapping[str, Any]


class OpenWebSocket:
    """Stands between the server and the app; :meth:`hang_up` ends both sides in order."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._accepted = False
        self._closing: asyncio.Future[None] | None = None
        self._hung_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive(self) -> Message:
        """The next event for the app: a disconnect, once we hung up."""
        if not self._hung_up.done():
            coming: asyncio.Future[Message] = asyncio.ensure_future(self._receive())
            both: list[asyncio.Future[Any]] = [coming, self._hung_up]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
            if not self._hung_up.done():
                return coming.result()
        return {"type": "websocket.disconnect", "code": SERVICE_RESTART, "reason": ""}

    async def send(self, message: Message) -> None:
        """Pass on what the app sends; once we hung up, it learns so by OSError (ASGI, "Send after disconnect")."""
        if self._closing is not None:
            if message["type"] == "websocket.close":
                return
            raise ConnectionAbortedError("the web server stops: WebSocket closed with 1012")
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._accepted = True
        elif message["type"] == "websocket.close":
            self._accepted = False

    async def hang_up(self) -> None:
        """Close it with 1012; does nothing before it is accepted and after it is closed.

        The app learns of it when the close has left: a server that sees the app end first closes without a code.
        """
        if not self._accepted or self._closing is not None:
            return
        close = {"type": "websocket.close", "code": SERVICE_RESTART, "reason": "service restart"}
        self._closing = asyncio.ensure_future(self._send(close))
        try:
            await asyncio.wait([self._closing], timeout=UNREAD_S)
        finally:
            self._hung_up.set_result(None)
        await self._closing
