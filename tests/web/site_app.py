"""The site that the server processes of ``test_real_servers.py`` serve: Starlette, and our middleware around it.

The environment says where the sessions are: SITE_SESSION_SERVERS (URLs, comma-separated), SITE_KEY, SITE_NAME.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from coatcheck import CookiePolicy, SessionMiddleware, connect

PIECES = 5


async def show(request: Request) -> Response:
    return JSONResponse({"user": request.session.user, "data": dict(request.session)})


async def untouched(request: Request) -> Response:
    return JSONResponse("nothing")


async def count(request: Request) -> Response:
    request.session["n"] = request.session.get("n", 0) + 1
    request.session.setdefault("seen", []).append(os.environ["SITE_NAME"])
    return JSONResponse(request.session["n"])


async def echo(request: Request) -> Response:
    """Keeps what was posted: unicode, nested, large."""
    request.session.update(await request.json())
    return Response(status_code=204)


async def slow(request: Request) -> Response:
    request.session[request.query_params["key"]] = True
    await asyncio.sleep(0.3)
    return JSONResponse("slow")


async def verb(request: Request) -> Response:
    session: Any = request.session
    match request.path_params["verb"]:
        case "rotate":
            session.rotate()
        case "login":
            session.regenerate("ada")
        case "logout":
            session.close()
        case "bad":
            session["bad"] = object()
    return JSONResponse("done")


async def stream(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(PIECES):
            request.session["piece"] = number
            yield b"%d\n" % number
            await asyncio.sleep(0.01)

    return StreamingResponse(pieces(), media_type="text/plain")


async def talk(websocket: WebSocket) -> None:
    """Counts if asked to in the URL, then tells what it sees for each message."""
    if "count" in websocket.query_params:
        websocket.session["talks"] = websocket.session.get("talks", 0) + 1
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json(dict(websocket.session))


site = Starlette(
    routes=[
        Route("/", show),
        Route("/untouched", untouched),
        Route("/count", count, methods=["POST"]),
        Route("/echo", echo, methods=["POST"]),
        Route("/slow", slow, methods=["POST"]),
        Route("/stream", stream),
        Route("/{verb:str}", verb, methods=["POST"]),
        WebSocketRoute("/talk", talk),
    ]
)


def make() -> SessionMiddleware:
    names = os.environ["SITE_SESSION_SERVERS"].split(",")
    sessions = connect(*names, key=os.environ["SITE_KEY"], server=os.environ["SITE_NAME"])
    return SessionMiddleware(site, sessions, CookiePolicy(insecure_localhost=True), route_tag=os.environ["SITE_NAME"])
