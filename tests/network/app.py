"""The app of a web server in these tests: a counter, a logout; default settings, but for what ``OPTIONS`` says."""

from __future__ import annotations

import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from coatcheck import CookiePolicy, SessionMiddleware, connect


async def show(request: Request) -> JSONResponse:
    return JSONResponse(request.session.get("n"))


async def count(request: Request) -> JSONResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(request.session["n"])


async def logout(request: Request) -> JSONResponse:
    request.session.close()
    return JSONResponse("out")


async def events(request: Request) -> JSONResponse:
    return JSONResponse(sessions.status()["events"])


sessions = connect(
    *os.environ["SESSION_SERVERS"].split(),
    key=b"the key of the network tests, 32b",
    server=os.environ["SERVER_NAME"],
    **json.loads(os.environ.get("OPTIONS", "{}")),
)
routes = [
    Route("/", show),
    Route("/count", count, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/events", events),
]
app = SessionMiddleware(Starlette(routes=routes), sessions, CookiePolicy(insecure_localhost=True))
