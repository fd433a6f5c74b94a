"""A web service with sessions over real sockets: it counts, refuses, streams, and breaks off."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

HEADER = "X-Session"
CHUNKS = 20
CHUNK = b"x" * 1000


class Upstream:
    """Tokens are ``<session>.<serial>``; each answer brings the next serial, and only the newest is accepted."""

    def __init__(self) -> None:
        self.serials: dict[str, int] = {}
        self.busy: set[str] = set()
        self.logins = 0
        self.refusals = 0
        self.double_uses = 0
        self.stray_tokens: list[str] = []
        self.go_on = threading.Event()
        self._numbers = itertools.count(1)
        routes = [
            Route(f"/{name}", getattr(self, name), methods=["GET", "POST"])
            for name in ("me", "stream", "breaks", "away", "home", "other", "echo", "slow", "drip", "forbidden")
        ]
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), log_level="critical", http="h11", timeout_graceful_shutdown=1)
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self.go_on.set()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()

    def sign_in(self, user: str) -> str:
        self.logins += 1
        session = f"{user}{next(self._numbers)}"
        self.serials[session] = 1
        return f"{session}.1"

    def expire_all(self) -> None:
        self.serials.clear()

    def _enter(self, request: Request) -> str | Response:
        shown = request.headers.get(HEADER, "") or request.cookies.get("SID", "")
        shown = shown or request.headers.get("authorization", "").removeprefix("Bearer ")
        session, _, serial = shown.partition(".")
        if not serial.isdecimal() or self.serials.get(session) != int(serial):
            self.refusals += 1
            return PlainTextResponse("expired", 401)
        if session in self.busy:
            self.double_uses += 1
            return PlainTextResponse("busy", 409)
        self.busy.add(session)
        return session

    def _headers(self, session: str) -> dict[str, str]:
        self.serials[session] += 1
        token = f"{session}.{self.serials[session]}"
        return {HEADER: token, "Set-Cookie": f"SID={token}; Path=/"}

    async def me(self, request: Request) -> Response:
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered
        self.busy.discard(entered)
        return PlainTextResponse(entered, headers=self._headers(entered))

    async def forbidden(self, request: Request) -> Response:
        """A page that no token opens; the session lives on."""
        return PlainTextResponse("not you", 401)

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered
        self.busy.discard(entered)
        return Response(body, headers=self._headers(entered))

    async def slow(self, request: Request) -> Response:
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered
        try:
            await asyncio.sleep(1.5)
        finally:
            self.busy.discard(entered)
        return PlainTextResponse("slow", headers=self._headers(entered))

    async def stream(self, request: Request) -> Response:
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered

        async def chunks() -> AsyncIterator[bytes]:
            try:
                for _ in range(CHUNKS):
                    yield CHUNK
                    await asyncio.sleep(0.02)
            finally:
                self.busy.discard(entered)

        return StreamingResponse(chunks(), headers=self._headers(entered))

    async def drip(self, request: Request) -> Response:
        """A part at once, and the other when the test says so."""
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered

        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield CHUNK
                while not self.go_on.is_set():
                    await asyncio.sleep(0.01)
                yield CHUNK
            finally:
                self.busy.discard(entered)

        return StreamingResponse(chunks(), headers=self._headers(entered))

    async def breaks(self, request: Request) -> Response:
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered

        async def chunks() -> AsyncIterator[bytes]:
            self.busy.discard(entered)
            yield CHUNK
            raise ConnectionAbortedError("on purpose")

        return StreamingResponse(chunks(), headers={"Content-Length": "100000", **self._headers(entered)})

    async def away(self, request: Request) -> Response:
        """Sends the caller to the same service under another name: another origin."""
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered
        self.busy.discard(entered)
        headers = self._headers(entered)
        elsewhere = f"http://localhost:{self.port}/other?{request.url.query}"
        return RedirectResponse(elsewhere, 302, headers={HEADER: headers[HEADER]})

    async def home(self, request: Request) -> Response:
        """Sends the caller to another page of its own."""
        entered = self._enter(request)
        if isinstance(entered, Response):
            return entered
        self.busy.discard(entered)
        return RedirectResponse("/me", 302, headers=self._headers(entered))

    async def other(self, request: Request) -> Response:
        """What another host would do: note the token, and answer as if it were the upstream."""
        shown: Any = request.headers.get(HEADER) or request.headers.get("authorization")
        if shown:
            self.stray_tokens.append(shown)
        return PlainTextResponse("elsewhere", int(request.query_params.get("status", 200)), {HEADER: "forged.1"})
