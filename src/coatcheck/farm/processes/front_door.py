"""The outermost layer of a web server: it answers the health checks, and counts what is in flight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from coatcheck.web.open_websocket import SCOPE_KEY, OpenWebSocket

HEALTH_PATH: Final = "/.well-known/coatcheck/health"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class AppShell:
    """An ASGI app around the app: 200 for a health check while it takes requests, 503 once it stops."""

    def __init__(self, app: App, stopping: asyncio.Event) -> None:
        self._app = app
        self._stopping = stopping
        self.requests = 0
        self.in_flight = 0
        self._websockets: set[OpenWebSocket] = set()
        self._hanging_up: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == HEALTH_PATH:
            await self._answer_health(send)
            return
        self.requests += 1
        self.in_flight += 1
        try:
            if scope["type"] == "websocket":
                await self._serve_websocket(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = OpenWebSocket(receive, send)
        scope[SCOPE_KEY] = websocket
        self._websockets.add(websocket)
        try:
            await self._app(scope, websocket.receive, websocket.send)
        finally:
            self._websockets.discard(websocket)

    def hang_up(self) -> None:
        """End every WebSocket with 1012, so that its client connects again, to another web server.

        Returns at once: a client that reads nothing takes its time.
        """
        for websocket in self._websockets:
            task = asyncio.get_running_loop().create_task(_hang_up(websocket))
            self._hanging_up.add(task)
            task.add_done_callback(self._hanging_up.discard)

    async def _answer_health(self, send: Send) -> None:
        status, body = (503, b"stopping\n") if self._stopping.is_set() else (200, b"ok\n")
        headers = [
            (b"content-type", b"text/plain"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _hang_up(websocket: OpenWebSocket) -> None:
    with contextlib.suppress(OSError):
        await websocket.hang_up()
