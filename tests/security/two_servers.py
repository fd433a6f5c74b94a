"""Two web servers that share their session servers, browsers that show any cookie they like, and a clock to turn."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import in_hand
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.replication.entry import Entry
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.version import Version
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import UNREACHABLE, PutReply
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from coatcheck.web.asgi import SessionMiddleware

LEASE_S = 0.05
COOKIE, LOGIN = "__Host-coatcheck", "__Host-coatcheck-login"
DEADLINE_S = 10.0


class Gate:
    """Holds the requests to ``/slow`` inside the app."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()


def make_app(gate: Gate) -> Starlette:
    async def show(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.session.user, "data": dict(request.session)})

    async def put(request: Request) -> JSONResponse:
        key = request.query_params["key"]
        request.session[key] = request.session.get(key, 0) + 1
        return JSONResponse(request.session[key])

    async def slow(request: Request) -> JSONResponse:
        gate.entered.set()
        async with asyncio.timeout(DEADLINE_S):
            await gate.opened.wait()
        if request.method == "POST":
            request.session["slow"] = "done"
        return JSONResponse("slow")

    async def login(request: Request) -> JSONResponse:
        request.session.regenerate(request.query_params.get("user", "ada"))
        return JSONResponse("in")

    async def logout(request: Request) -> JSONResponse:
        request.session.close()
        return JSONResponse("out")

    return Starlette(
        routes=[
            Route("/", show),
            Route("/put", put, methods=["POST"]),
            Route("/slow", slow, methods=["GET", "POST"]),
            Route("/login", login, methods=["POST"]),
            Route("/logout", logout, methods=["POST"]),
        ]
    )


class MortalStore(MemoryStore):
    """May die of a put that it has stored: nobody hears of it."""

    dies_of_next_put = False

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        if not self.dies_of_next_put:
            super().put(key, seen, new, reply, notify)
            return
        self.dies_of_next_put = False
        super().put(key, seen, new, lambda lost: None, notify)
        self._closed = True
        self._reachability.set(False, "died", event=False)
        reply(UNREACHABLE)


class Servers:
    """``web-1`` and ``web-2`` with the same key ring and the same session servers."""

    def __init__(
        self,
        policy: SessionPolicy | None = None,
        *,
        session_servers: int = 2,
        replication: ReplicationPolicy | None = None,
        ring: KeyRing | None = None,
    ) -> None:
        self.now_ms = 1_763_700_000_000
        self.events: list[Event] = []
        self.gate = Gate()
        self.stores = [MortalStore(f"session-{n}", time.monotonic) for n in range(1, session_servers + 1)]
        self.ring = ring or KeyRing([os.urandom(32)])
        self.sessions = [
            Sessions(
                farm="farm",
                server_name=f"web-{n}",
                stores=self.stores,
                ring=self.ring,
                policy=policy,
                replication=replication or ReplicationPolicy(lease_s=LEASE_S),
                observer=self.events.append,
            )
            for n in (1, 2)
        ]
        for sessions in self.sessions:
            sessions.copies.world.now_ms = lambda: self.now_ms  # type: ignore[method-assign]
        self.middlewares = [SessionMiddleware(make_app(self.gate), one, CookiePolicy()) for one in self.sessions]

    def later(self, seconds: float) -> None:
        """Time passes; leases, which count real seconds, are over then."""
        self.now_ms += round(seconds * 1000)
        if seconds > 1:
            for sessions in self.sessions:
                sessions.copies.void_leases()

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    def opened(self, text: str, login: bool = False) -> SealedToken:
        token = in_hand.unsealed(self.sessions[0], text.encode(), login)
        assert token is not None
        return token

    @property
    def accused(self) -> bool:
        return EventKind.SESSION_THEFT in self.kinds()


class Answer:
    """``cookies``: what the response sets; an empty value deletes."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.text = response.text
        self.body: Any = response.json() if "json" in response.headers.get("content-type", "") else response.text
        self.cookies: dict[str, str] = {}
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')


class Browser:
    """A cookie jar. ``send`` leaves it as it is: the response may be lost; ``get`` and ``post`` take the answer."""

    def __init__(self, servers: Servers, jar: Mapping[str, str] | None = None) -> None:
        self.servers = servers
        self.jar = dict(jar or {})

    async def send(self, server: int, method: str, path: str, **headers: str) -> Answer:
        if self.jar:
            headers["cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        transport = httpx.ASGITransport(self.servers.middlewares[server - 1])
        async with httpx.AsyncClient(transport=transport, base_url="https://farm.example") as client:
            return Answer(await client.request(method, path, headers=headers))

    def take(self, answer: Answer) -> Answer:
        for name, value in answer.cookies.items():
            if value:
                self.jar[name] = value
            else:
                self.jar.pop(name, None)
        return answer

    async def get(self, server: int, path: str = "/") -> Answer:
        return self.take(await self.send(server, "GET", path))

    async def post(self, server: int, path: str) -> Answer:
        return self.take(await self.send(server, "POST", path))

    async def put(self, server: int, key: str = "n") -> Answer:
        return await self.post(server, f"/put?key={key}")

    def copy(self) -> Browser:
        """Somebody else with the same cookies: a thief, or another tab before either has an answer."""
        return Browser(self.servers, self.jar)

    def token(self, name: str = COOKIE) -> SealedToken:
        return self.servers.opened(self.jar[name], name == LOGIN)


@asynccontextmanager
async def two_servers(
    policy: SessionPolicy | None = None,
    *,
    session_servers: int = 2,
    replication: ReplicationPolicy | None = None,
    ring: KeyRing | None = None,
) -> AsyncIterator[Servers]:
    servers = Servers(policy, session_servers=session_servers, replication=replication, ring=ring)
    for sessions in servers.sessions:
        await sessions.start()
    try:
        yield servers
    finally:
        for sessions in servers.sessions:
            await sessions.aclose()


async def shopper(servers: Servers) -> Browser:
    """A browser with a session that holds ``n = 1``."""
    browser = Browser(servers)
    assert (await browser.put(1)).body == 1
    return browser
