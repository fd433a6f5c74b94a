"""A middleware around any ASGI app, called without a server; session servers that can be slow or away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event
from coatcheck.replication.entry import Entry
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.version import Version
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.routes import Sticky
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import PutReply
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

App = Callable[[Any, Any, Any], Awaitable[None]]
Act = Callable[[Any], Any]


class SlowStore(MemoryStore):
    """Takes a put at once and says so after ``delay_s``."""

    delay_s = 0.0

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        if not self.delay_s:
            super().put(key, seen, new, reply, notify)
            return
        loop = asyncio.get_running_loop()
        super().put(key, seen, new, lambda told: loop.call_later(self.delay_s, reply, told) and None, notify)


class Served:
    """``app`` may be changed between the requests."""

    def __init__(
        self, app: App, policy: SessionPolicy, cookies: CookiePolicy, route_tag: str | None, sticky: Sticky
    ) -> None:
        self.app = app
        self.events: list[Event] = []
        self.stores = [SlowStore(f"session-{n}", time.monotonic) for n in (1, 2)]
        self.ring = KeyRing([os.urandom(32)])
        self.policy = policy
        self.sessions = self.another_server()
        self.middleware = SessionMiddleware(self._call, self.sessions, cookies, route_tag, sticky=sticky)

    def another_server(self) -> Sessions:
        return Sessions(
            farm="farm",
            server_name="web",
            stores=self.stores,
            ring=self.ring,
            policy=self.policy,
            replication=ReplicationPolicy(lease_s=0.05),
            observer=self.events.append,
        )

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A browser; cookies are kept as one keeps them."""
        transport = httpx.ASGITransport(self.middleware, **options)
        return httpx.AsyncClient(transport=transport, base_url="https://farm.example")

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def acting(act: Act, headers: list[tuple[bytes, bytes]] | None = None) -> App:
    """An app that does one thing to its session and answers with what that returned."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told = act(scope["session"])
        await send({"type": "http.response.start", "status": 200, "headers": list(headers or ())})
        await send({"type": "http.response.body", "body": repr(told).encode()})

    return app


def count(session: Any) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


def look(session: Any) -> dict[str, Any]:
    return dict(session)


@asynccontextmanager
async def served(
    app: App,
    *,
    policy: SessionPolicy | None = None,
    cookies: CookiePolicy | None = None,
    route_tag: str | None = None,
    sticky: Sticky = "browser",
) -> AsyncIterator[Served]:
    server = Served(app, policy or SessionPolicy(), cookies or CookiePolicy(), route_tag, sticky)
    try:
        yield server
    finally:
        await server.sessions.aclose()
