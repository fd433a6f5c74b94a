"""For gunicorn with ``--preload``: all of this is made once, before the workers are forked."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from coatcheck import CookiePolicy, SessionMiddleware, connect

sessions = connect(os.environ["SESSION_SERVER"], key="m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")


async def count(request: Request) -> JSONResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(
        {"n": request.session["n"], "pid": os.getpid(), "made": os.environ["MADE"], "id": sessions.server_id.hex()}
    )


os.environ["MADE"] = str(os.getpid())
app = SessionMiddleware(
    Starlette(routes=[Route("/", count, methods=["GET", "POST"])]), sessions, CookiePolicy(insecure_localhost=True)
)
