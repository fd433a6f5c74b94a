"""The session service in this process, without sockets, for requests that are hostile: what all answers must be.

A request is what the service's HTTP server passes on.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from coatcheck.access import SessionAccess
from coatcheck.hand_off.sites import Site, Sites
from coatcheck.service.callers import credential
from coatcheck.service.service import SessionService
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.session_server_url import parse_session_servers
from coatcheck.tokens.keyring import KeyRing
from security.hostile_input import Report, run_with

FARM, KEY = "farm", bytes(range(32))
LOGIN_URL = "https://login.example/in?a=b"
SHOP, TICKETS = "https://shop.example", "https://tickets.example"
CALLERS = f"""
[shop]
scopes = ["verify", "renew", "create", "update", "close", "hand-off", "list-user", "close-user", "events"]
requests_per_minute = 10000000
[reader]
scopes = ["verify"]
requests_per_minute = 10000000
[proxy]
scopes = ["forward-auth"]
requests_per_minute = 10000000
audience = "https://pages.example"
claims = ["n"]
login_url = "{LOGIN_URL}"
"""
FORWARD_AUTH = "/v1/forward-auth"
MAX_WAIT_S = 60.0
BATCH = 200
"""Inputs until the service must serve somebody, and another session is there to be attacked."""
INPUTS_OF_A_SERVICE = 4_000
"""Then another one begins, without the sessions that were made in this one."""


class Asked(NamedTuple):
    """One request. ``body``: its pieces; after a last piece of ``None`` the peer has gone."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: list[bytes | None]


class Told(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Service:
    """The session service of a farm of two sites, and one session that others would like to have."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path, dice: random.Random) -> None:
        (folder / "callers.toml").write_text(CALLERS)
        """``dice``: of what it is asked."""
        self.loop = loop
        self.folder = folder
        self.dice = dice
        ring = KeyRing([KEY])
        self.credentials = {credential(name, 1, ring, FARM): name for name in ("shop", "reader", "proxy")}
        self.of = {name: text.encode() for text, name in self.credentials.items()}
        self.strange = [
            credential("shop", 2, ring, FARM), credential("nobody", 1, ring, FARM),
            credential("shop", 1, ring, "other"), credential("shop", 1, KeyRing([bytes(32)]), FARM),
            "shop.1.", "shop..", "..", "",
        ]  # fmt: skip
        self.running: SessionService | None = None
        self.cookies: list[str] = []
        self.closed = False
        """Whether somebody was allowed to end that session."""

    def start(self) -> None:
        """A service without any session."""
        self.stop()
        table = (Site(name="shop", origin=SHOP), Site(name="tickets", origin=TICKETS, paths=("/tickets/*",)))
        access = SessionAccess(
            farm=FARM, server="s", session_servers=parse_session_servers(("memory://",), ("memory",)), keys=(KEY,),
            sites=Sites(table=table, here="tickets"),
        )  # fmt: skip
        self.running = SessionService(access, CookiePolicy(), self.folder / "callers.toml")
        self.app = self.running.app()
        self.loop.run_until_complete(self.running.sessions.start())
        self.document = json.loads(self.tell(Asked("GET", "/openapi.json", [], [b""])).body)

    def stop(self) -> None:
        if self.running is not None:
            self.loop.run_until_complete(self.running.sessions.aclose())

    def serve(self) -> None:
        """Somebody logs in, and is known."""
        self.closed = False
        made = self.tell(self.genuine("shop", "/v1/sessions", {"user": "ada", "data": {"n": 1}}))
        assert made.status == 201, made
        self.cookies = [*self.cookies[-1:], json.loads(made.body)["cookie"]]
        shown = self.tell(self.genuine("reader", "/v1/sessions/verify", {"cookie": self.cookie}))
        assert (shown.status, json.loads(shown.body)["session"]["user"]) == (200, "ada"), shown
        proxied = self.tell(Asked("GET", FORWARD_AUTH, [self.authorization("proxy"), self.shown()], [b""]))
        assert (proxied.status, proxied.headers.get("x-session-user")) == (200, "ada"), proxied

    @property
    def cookie(self) -> str:
        return self.cookies[-1]

    def shown(self) -> tuple[bytes, bytes]:
        return (b"cookie", self.cookie.encode())

    def authorization(self, caller: str) -> tuple[bytes, bytes]:
        return (b"authorization", b"Bearer " + self.of[caller])

    def genuine(self, caller: str, path: str, members: dict[str, Any]) -> Asked:
        headers = [self.authorization(caller), (b"content-type", b"application/json")]
        return Asked("POST", path, headers, [json.dumps(members).encode()])

    def make(self) -> Asked:
        """Something that should not be."""
        raise NotImplementedError

    def judge(self, asked: Asked) -> bool:
        """Whether it was accepted, as it may be."""
        raise NotImplementedError

    def bodies(self) -> dict[str, dict[str, Any]]:
        """A good one of each operation."""
        shown = {"cookie": self.cookie, "client": "192.0.2.1"}
        return {
            "/v1/sessions": {
                "user": "ada", "data": {"n": 1, "x": [1.5, None]}, "device": "Firefox", "remember": True,
                "id_token": {"iss": "https://idp.example", "sub": "u-1"},
            },
            "/v1/sessions/verify": dict(shown),
            "/v1/sessions/renew": {**shown, "now": False},
            "/v1/sessions/update": {**shown, "set": {"n": 2}, "delete": ["x"]},
            "/v1/sessions/close": dict(shown),
            "/v1/hand-off": {**shown, "url": "/tickets/1?a=b", "method": "GET", "cross_site": False},
            "/v1/users/sessions": {"user": "ada"},
            "/v1/users/close": {"user": "ada", **shown},
        }  # fmt: skip

    def requests(self, count: int) -> Iterator[Asked]:
        for number in range(count):
            if number % INPUTS_OF_A_SERVICE == 0:
                self.start()
            if number % BATCH == 0 or self.closed:
                self.serve()
            yield self.make()
        self.serve()

    def tell(self, asked: Asked) -> Told:
        """What is answered, to whatever is asked: a good answer, or a problem without a secret."""
        told = self.loop.run_until_complete(self._send(asked))
        assert told.status < 500, told
        self.closed = self.closed or (told.status == 200 and asked.target.endswith("/close"))
        assert all("\r" not in value and "\n" not in value for value in told.headers.values())
        assert told.headers.get("cache-control") == "no-store" or told.status in (404, 405), told
        if told.status >= 400:
            assert told.headers["content-type"] == "application/problem+json", told
            assert json.loads(told.body)["status"] == told.status
            for secret in (*self.credentials, *self.cookies):
                assert secret[-40:].encode() not in told.body, "a problem tells a secret"
        return told

    async def _send(self, asked: Asked) -> Told:
        path, _, query = asked.target.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": asked.method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "headers": asked.headers,
            "client": ("192.0.2.9", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        pieces, sent = iter(asked.body), list[Any]()

        async def receive() -> dict[str, Any]:
            piece = next(pieces, None)
            if piece is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": piece, "more_body": piece is not asked.body[-1]}

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(MAX_WAIT_S):
            await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Told(sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:]))


def run_of(kind: str, service_of: Callable[..., Service], count: int, seed: int) -> Report:
    """``count`` requests as a service makes and judges them."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        service = service_of(runner.get_loop(), Path(folder), random.Random(f"{kind} {seed}"))
        try:
            return run_with(kind, service.requests(count), service.judge, count, seed)
        finally:
            service.stop()
