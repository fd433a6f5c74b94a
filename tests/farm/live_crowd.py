"""Clients that keep their TLS connections, and count what they see: a wrong byte, a wrong answer, a new connection."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from .farm_process import DEADLINE_S, Farm

BIG = b"0123456789abcdef" * (1 << 16)
HUGE = BIG * 8
"""More than the kernel holds of one connection."""

LIVE_APP = """
import asyncio, os
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BIG = b"0123456789abcdef" * (1 << 16)

async def answer(request):
    body = await request.body()
    return JSONResponse({"path": request.url.path, "body": len(body), "server": os.environ["COATCHECK_SERVER"],
                         "pid": os.getpid(), "client": request.client.host, "scheme": request.url.scheme})

async def big(request):
    body = BIG * int(request.path_params["times"])
    return Response(body, headers={"etag": '"as-ever"'} if request.path_params["kind"] == "tagged" else {})

async def slow(request):
    await asyncio.sleep(float(request.path_params["seconds"]))
    return await answer(request)

async def once(request):
    # Written down before anything else: whoever dies now has begun it.
    with open("carried_out", "a") as file:
        file.write(request.path_params["mark"] + "\\n")
    while not os.path.exists("release"):
        await asyncio.sleep(0.01)
    return await answer(request)

async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"]})

METHODS = ["GET", "POST", "PUT"]
app = Starlette(routes=[
    Route("/big/{times}/{kind}", big), Route("/slow/{seconds}", slow), Route("/once/{mark}", once, methods=METHODS),
    Route("/count", count, methods=METHODS), Route("/{path:path}", answer, methods=METHODS),
])
"""


def client(farm: Farm, certificate: tuple[Path, Path], version: ssl.TLSVersion | None = None) -> Client:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    if version is not None:
        context.maximum_version = version
    return Client(str(farm.note()["address"]), context)


class Client:
    """One connection, for as long as it lasts."""

    def __init__(self, address: str, context: ssl.SSLContext) -> None:
        self._connection = http.client.HTTPSConnection(address, context=context, timeout=DEADLINE_S)
        self._connection.connect()
        self._socket = self._connection.sock
        self._cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body. Raises ``http.client.HTTPException`` or ``OSError`` if the connection breaks."""
        cookie = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        self._connection.request(method, path, body, headers | ({"Cookie": cookie} if cookie else {}))
        response = self._connection.getresponse()
        said = response.read()
        for line in response.headers.get_all("set-cookie") or ():
            name, _, value = line.partition(";")[0].partition("=")
            self._cookies[name] = value
        return response.status, said

    def see(self, path: str = "/hello") -> dict[str, Any]:
        status, said = self.ask("GET", path)
        assert status == 200, said
        found: dict[str, Any] = json.loads(said)
        return found

    @property
    def is_the_first(self) -> bool:
        """Whether it is still the connection that was made at the beginning."""
        return self._connection.sock is self._socket

    @property
    def is_closed(self) -> bool:
        """Whether it has no connection any more."""
        return self._connection.sock is None

    def reconnect(self) -> None:
        """Another connection, with the cookies of the one before."""
        self._connection.close()
        self._connection.connect()
        self._socket = self._connection.sock

    def close(self) -> None:
        self._connection.close()


class LiveCrowd:
    """Clients with a thread each, one request after another, until the end of the block."""

    def __init__(self, farm: Farm, certificate: tuple[Path, Path], clients: int, *, posts: bool) -> None:
        """``posts``: also requests that must not be sent twice."""
        self._over = threading.Event()
        self._posts = posts
        self._clients = [client(farm, certificate) for _ in range(clients)]
        self._threads = [threading.Thread(target=self._ask, args=(n, one)) for n, one in enumerate(self._clients)]
        self.answers = [0] * clients
        """Of each client."""
        self.moved = 0
        self.problems: list[str] = []

    @property
    def answered(self) -> int:
        return sum(self.answers)

    def __enter__(self) -> LiveCrowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive()
        for one in self._clients:
            one.close()

    def _ask(self, number: int, one: Client) -> None:
        draw, server, asked = random.Random(number), "", 0
        while not self._over.is_set():
            asked += 1
            path = f"/{number}/{asked}"
            try:
                server = self._ask_once(draw, one, path, server)
                self.answers[number] += 1
            except (OSError, http.client.HTTPException, AssertionError, ValueError) as error:
                self.problems.append(f"client {number}, request {asked}: {error!r}")
                return
            if not one.is_the_first:
                self.problems.append(f"client {number}, request {asked}: a new connection")
                return
            time.sleep(draw.random() * 0.1)

    def _ask_once(self, draw: random.Random, one: Client, path: str, server: str) -> str:
        kind = draw.random()
        if kind < 0.1:
            status, said = one.ask("GET", "/big/1/tagged")
            assert (status, said) == (200, BIG), (status, len(said))
            return server
        if kind < 0.2:
            path = f"/slow/{draw.random() * 0.05:.3f}"
            status, said = one.ask("GET", path)
        elif kind < 0.5:
            status, said = one.ask("POST" if self._posts else "PUT", path, b"x" * draw.randrange(1, 30_000))
        else:
            status, said = one.ask("GET", path)
        assert status == 200, (status, said)
        found = json.loads(said)
        assert found["path"] == path, (found, path)
        self.moved += bool(server) and found["server"] != server
        return str(found["server"])
