"""The names of ASGI: what a server and an app hand each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from coatcheck.sessions.answer import Answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]


class Middleware(Protocol):
    """What a response asks of the middleware that it goes through."""

    async def refuse(self, scope: Scope, send: Send, answer: Answer, what: str) -> None: ...

    def name_layer(self, layer: str) -> None: ...
