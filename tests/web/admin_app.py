"""A shop with sqladmin mounted, which brings its own session layer, behind our middleware."""

from __future__ import annotations

import os

from sqladmin import Admin
from sqladmin.authentication import AuthenticationBackend
from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coatcheck import CookiePolicy, SessionMiddleware, connect

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"


class Guard(AuthenticationBackend):
    async def login(self, request: Request) -> bool:
        request.session.update(admin="root")
        return True

    async def logout(self, request: Request) -> bool:
        request.session.clear()
        return True

    async def authenticate(self, request: Request) -> bool:
        return "admin" in request.session


async def count(request: Request) -> Response:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(dict(request.session))


async def show(request: Request) -> Response:
    return JSONResponse(dict(request.session))


async def passing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


shop = Starlette(
    routes=[Route("/", show), Route("/count", count, methods=["POST"])],
    middleware=[Middleware(BaseHTTPMiddleware, dispatch=passing)],
)
Admin(shop, create_engine("sqlite://"), authentication_backend=Guard(secret_key="s" * 32))
app = SessionMiddleware(
    shop,
    connect(f"sqlite:///{os.environ['SESSIONS_FILE']}", key=KEY),
    CookiePolicy(insecure_localhost=True),
)
