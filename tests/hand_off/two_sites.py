"""Two sites of one farm in this process, and browsers that keep cookies by host and follow redirects."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urljoin, urlsplit

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.hand_off.sites import HandOffMode, Site, Sites
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.take_once.memory import MemoryItems, MemoryItemsForThreads, SharedItemTable
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

SHOP, TICKETS = "https://shop.example", "https://tickets.example"
TABLE = (
    Site(name="shop", origin=SHOP),
    Site(name="tickets", origin=TICKETS, paths=("/tickets/*",)),
)
MAX_REDIRECTS = 20
"""As browsers have it."""
RING = KeyRing([bytes(range(32))])


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says who asks, and does what the path's last segment says."""
    session, verb = scope["session"], scope["path"].rsplit("/", 1)[-1]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if verb.startswith("login-"):
        session.regenerate(verb.removeprefix("login-"))
    elif verb.startswith("remember-"):
        session.regenerate(verb.removeprefix("remember-"), remember=True)
    elif verb == "logout":
        session.close()
    elif verb == "add":
        session["cart"] = session.get("cart", 0) + 1
    said = {
        "user": None if verb == "logout" else session.user, "cart": session.get("cart"),
        "query": scope["query_string"].decode("latin-1"), "method": scope["method"], "body": body.decode(),
    }  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


class Farm:
    """Each site is one web server with links of its own to session servers that both share."""

    def __init__(
        self,
        table: tuple[Site, ...] = TABLE,
        cookies: CookiePolicy | None = None,
        mode: HandOffMode = "ticket",
        policy: SessionPolicy | None = None,
        ring: KeyRing = RING,
    ) -> None:
        self.ring = ring
        self.ahead_ms = 0
        """How far the farm's time is ahead of this machine's."""
        self.events: list[Event] = []
        self.stores = [MemoryStore(f"session-{n}", time.monotonic) for n in (1, 2)]
        self.items = [MemoryItemsForThreads(store.name, time.monotonic) for store in self.stores]
        self.cookies = cookies or CookiePolicy()
        self.sites: dict[str, SessionMiddleware] = {}
        self.table = table
        for site in table:
            self.serve(site.origin, Sites(table=table, here=site.name, hand_off=mode), policy or SessionPolicy())

    def serve(self, origin: str, sites: Sites, policy: SessionPolicy) -> None:
        sessions = Sessions(
            farm="farm", server_name=sites.own.name, ring=self.ring, policy=policy, cookies=self.cookies, sites=sites,
            stores=lambda: [MemoryStore(store.name, time.monotonic, beside=store) for store in self.stores],
            items=lambda: [MemoryItems(items) for items in self.items],
            replication=ReplicationPolicy(lease_s=0.05), observer=self.events.append,
        )  # fmt: skip
        world, now_ms = sessions.copies.world, sessions.copies.world.now_ms
        world.now_ms = lambda: now_ms() + self.ahead_ms  # type: ignore[method-assign]
        self.sites[origin] = SessionMiddleware(app, sessions)

    def sessions(self, origin: str) -> Sessions:
        return self.sites[origin].sessions

    def count(self, kind: EventKind) -> int:
        return sum(event.kind is kind for event in self.events)

    def lose_items(self) -> None:
        """The session servers are restarted empty, as far as tickets are concerned."""
        for items in self.items:
            items._table = SharedItemTable()

    async def close(self) -> None:
        for middleware in self.sites.values():
            await middleware.sessions.aclose()


@asynccontextmanager
async def farm(**options: Any) -> AsyncIterator[Farm]:
    made = Farm(**options)
    try:
        yield made
    finally:
        await made.close()


class Reply:
    def __init__(self, url: str, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]

    @property
    def location(self) -> str | None:
        return urljoin(self.url, found[0]) if (found := self.all("location")) else None

    def json(self) -> Any:
        return json.loads(self.body)


class Browser:
    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self.jar: dict[str, dict[str, str]] = {}

    def cookie_header(self, host: str) -> str:
        return "; ".join(f"{name}={value}" for name, value in self.jar.get(host, {}).items())

    async def send(
        self,
        url: str,
        method: str = "GET",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        lost: bool = False,
    ) -> Reply:
        """One request; of an answer that is lost no cookie is kept."""
        parts = urlsplit(url)
        sent = [(b"host", parts.netloc.encode())]
        if cookies := self.cookie_header(parts.hostname or ""):
            sent.append((b"cookie", cookies.encode()))
        sent += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {
            "type": "http", "method": method, "path": parts.path or "/", "raw_path": (parts.path or "/").encode(),
            "query_string": parts.query.encode(), "headers": sent, "client": ("127.0.0.1", 1), "scheme": parts.scheme,
        }  # fmt: skip
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self._farm.sites[f"{parts.scheme}://{parts.netloc}"](scope, receive, send)
        found = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        reply = Reply(url, messages[0]["status"], found, b"".join(one.get("body", b"") for one in messages[1:]))
        if not lost:
            self.keep(reply)
        return reply

    def copy(self) -> Browser:
        """Somebody who has stolen the whole jar."""
        thief = Browser(self._farm)
        thief.jar = {host: dict(cookies) for host, cookies in self.jar.items()}
        return thief

    def keep(self, reply: Reply) -> None:
        kept = self.jar.setdefault(urlsplit(reply.url).hostname or "", {})
        for line in reply.all("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    kept.pop(name, None)
                else:
                    kept[name] = morsel.value

    async def visit(
        self, url: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> list[Reply]:
        """Follow redirects as a browser does; the last reply is the page."""
        replies = [await self.send(url, method, body, headers)]
        while (location := replies[-1].location) is not None:
            assert len(replies) <= MAX_REDIRECTS, "a browser gives up here"
            if replies[-1].status == 303:
                method, body = "GET", b""
            replies.append(await self.send(location, method, body, headers))
        return replies

    async def who(self, url: str) -> str | None:
        """Who this browser is for a site, by its cookies alone."""
        user: str | None = (await self.send(url)).json()["user"]
        return user

    async def until(self, url: str, parameter: str) -> str:
        """Follow redirects up to the URL that has this parameter, which is not asked for."""
        while parameter not in url:
            reply = await self.send(url)
            assert reply.location is not None, f"{reply.status} at {reply.url}"
            url = reply.location
        return url
