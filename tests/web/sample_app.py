"""The app that real servers serve in the tests: Starlette behind our middleware, sessions in a SQLite file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from coatcheck import CookiePolicy, SessionMiddleware, connect

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"


async def show(request: Request) -> JSONResponse:
    return JSONResponse({"user": request.session.user, "data": dict(request.session)})


async def count(request: Request) -> JSONResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    request.session.setdefault("log", []).append(request.session["n"])
    return JSONResponse(request.session["n"])


async def login(request: Request) -> JSONResponse:
    request.session.regenerate("ada")
    return JSONResponse("in")


async def logout(request: Request) -> JSONResponse:
    request.session.close()
    return JSONResponse("out")


async def rotate(request: Request) -> JSONResponse:
    request.session.rotate()
    return JSONResponse("rotated")


async def stream(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"first "
        await asyncio.sleep(0.05)
        request.session["streamed"] = True
        yield b"last"

    return StreamingResponse(pieces())


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.5)
    request.session["slow"] = True
    return Response(status_code=204)


async def bad(request: Request) -> JSONResponse:
    request.session["bad"] = object()
    return JSONResponse("never")


async def echo(socket: WebSocket) -> None:
    if "nick" in socket.query_params:
        socket.session["nick"] = socket.query_params["nick"]
    await socket.accept()
    await socket.send_json(dict(socket.session))
    await socket.close()


routes = [
    Route("/", show),
    Route("/count", count, methods=["POST"]),
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/rotate", rotate, methods=["POST"]),
    Route("/stream", stream),
    Route("/slow", slow, methods=["POST"]),
    Route("/bad", bad),
    WebSocketRoute("/ws", echo),
]
sessions = connect(
    f"sqlite:///{os.environ['SESSIONS_FILE']}",
    key=KEY,
    server=os.environ["SERVER_NAME"],
)
app = SessionMiddleware(
    Starlette(routes=routes), sessions, CookiePolicy(insecure_localhost=True), route_tag=os.environ["SERVER_NAME"]
)
