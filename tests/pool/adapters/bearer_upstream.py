"""An API with bearer tokens, and the token endpoint of OAuth 2.0 that issues them, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
import threading
import time
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "a client", "a secret / of + its own"


class BearerUpstream:
    """Any number of calls may use a token at once, until it ends or is revoked."""

    def __init__(self, life_s: float = 100.0, login_s: float = 0.0) -> None:
        self.life_s = life_s
        self.login_s = login_s
        self.live: dict[str, float] = {}
        self.refresh_tokens = {"consent": True}
        self.logins = 0
        self.refusals = 0
        self.seen: list[Any] = []
        self.error = ""
        self._numbers = itertools.count(1)
        methods = ["GET", "POST"]
        routes = [
            Route(f"/{name}", getattr(self, name), methods=methods) for name in ("api", "forbidden", "token", "parts")
        ]
        self._server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), log_level="critical", http="h11", timeout_graceful_shutdown=1)
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        self._listener.close()

    def issue(self) -> str:
        self.logins += 1
        token = f"token-{next(self._numbers)}"
        self.live[token] = time.monotonic() + self.life_s
        return token

    def revoke_all(self) -> None:
        self.live.clear()

    async def api(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        await asyncio.sleep(0.005)
        if self.live.get(token, 0.0) <= time.monotonic():
            self.refusals += 1
            return PlainTextResponse("refused", 401)
        return PlainTextResponse(token)

    async def forbidden(self, request: Request) -> Response:
        self.refusals += 1
        return PlainTextResponse("refused", 401)

    async def parts(self, request: Request) -> Response:
        """Tells where it found what."""
        body = (await request.body()).decode()
        found = {"cookies": request.cookies, "query": dict(request.query_params), "form": parse_qs(body)}
        return JSONResponse({**found, "csrf": request.headers.get("x-csrf-token")})

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.seen.append(form)
        await asyncio.sleep(self.login_s)
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_client"}, 401)
        if self.error:
            return JSONResponse({"error": self.error}, 400)
        answer: dict[str, Any] = {"access_token": "", "token_type": "Bearer", "expires_in": int(self.life_s)}
        if form["grant_type"] == "refresh_token":
            if not self.refresh_tokens.get(form["refresh_token"]):
                return JSONResponse({"error": "invalid_grant"}, 400)
            self.refresh_tokens[form["refresh_token"]] = form["refresh_token"] == "consent"
            answer["refresh_token"] = f"refresh-{next(self._numbers)}"
            self.refresh_tokens[answer["refresh_token"]] = True
        answer |= {"access_token": self.issue(), "instance_url": self.url}
        return JSONResponse(answer)
