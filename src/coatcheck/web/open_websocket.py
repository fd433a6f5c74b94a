"""A WebSocket that its web server can end: when the server stops, and when the session that it belongs to is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

SERVICE_RESTART: Final = 1012
"""The close code that asks a client to connect again (IANA registry of RFC 6455, 11.7)."""

POLICY_VIOLATION: Final = 1008
"""The close code of a WebSocket whose session has ended (RFC 6455, 7.4.1)."""

TRY_AGAIN_LATER: Final = 1013
"""The close code of a WebSocket whose session cannot be had just now (IANA registry of RFC 6455)."""

SCOPE_KEY: Final = "coatcheck.websocket"
"""Where the outer of two layers leaves its :class:`OpenWebSocket` for the inner one: one stands between is enough."""

UNREAD_S: Final = 1.0
"""A client that reads nothing keeps the app no longer than this."""

MAX_CAUSES: Final = 32
"""How many errors behind an error are looked at."""

Message = MutableMapping[str, Any]


class HungUp(ConnectionAbortedError):
    """What an app that sends on is told after the web server has ended its WebSocket or stream (ASGI: an OSError)."""


def is_caused_by_hang_up(error: BaseException) -> bool:
    """Whether an app failed because of :class:`HungUp`, and so did not fail at all."""
    pending: list[BaseException | None] = [error]
    for _ in range(MAX_CAUSES):
        if not pending:
            return False
        cause = pending.pop()
        if isinstance(cause, HungUp):
            return True
        if cause is not None:
            pending += [cause.__cause__, cause.__context__]
        if isinstance(cause, BaseExceptionGroup):
            pending += cause.exceptions
    return False


class OpenWebSocket:
    """Stands between the server and the app; :meth:`hang_up` ends both sides in order."""

    __slots__ = ("_accepted", "_closing", "_code", "_hung_up", "_reason", "_receive", "_send", "on_restart")

    def __init__(self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._accepted = False
        self.on_restart: Callable[[], None] | None = None
        """What a WebSocket that another web server can go on with does in place of asking its client to connect."""
        self._code = SERVICE_RESTART
        self._reason = ""
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
        return {"type": "websocket.disconnect", "code": self._code, "reason": self._reason}

    async def send(self, message: Message) -> None:
        """Pass on what the app sends; once we hung up, it learns so by OSError (ASGI, "Send after disconnect")."""
        if self._closing is not None:
            if message["type"] == "websocket.close":
                return
            raise HungUp(f"the web server has closed this WebSocket: {self._code} {self._reason}")
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._accepted = True
        elif message["type"] == "websocket.close":
            self._accepted = False

    async def hang_up(self, code: int = SERVICE_RESTART, reason: str = "service restart") -> None:
        """Close it with ``code``; does nothing before it is accepted and after it is closed.

        The app learns of it when the close has left: a server that sees the app end first closes without a code.
        """
        if not self._accepted or self._closing is not None:
            return
        if self.on_restart is not None and code == SERVICE_RESTART:
            self.on_restart()
            return
        self._code, self._reason = code, reason
        close = {"type": "websocket.close", "code": code, "reason": reason}
        self._closing = asyncio.ensure_future(self._send(close))
        try:
            await asyncio.wait([self._closing], timeout=UNREAD_S)
        finally:
            self._hung_up.set_result(None)
        await self._closing
