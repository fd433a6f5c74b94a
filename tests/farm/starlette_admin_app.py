"""A Starlette app with starlette-admin, whose logins are in ``request.session`` as its documentation shows."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette_admin import BaseAdmin
from starlette_admin.auth import AdminUser, AuthProvider
from starlette_admin.exceptions import LoginFailed


class Guard(AuthProvider):
    async def login(self, username: str, password: str, remember_me: bool, request: Request) -> Response | None:
        if username != password:
            raise LoginFailed("wrong password")
        request.session["user"] = username
        return None

    async def logout(self, request: Request) -> Response | None:
        request.session.clear()
        return None

    async def authenticate(self, request: Request) -> AdminUser | None:
        user = request.session.get("user")
        return AdminUser(username=f"this is {user}") if user else None


async def server(request: Request) -> Response:
    return PlainTextResponse(os.environ["COATCHECK_SERVER"])


app = Starlette(routes=[Route("/server", server)])
admin = BaseAdmin(auth_provider=Guard(), secret_key="for-tests-only-for-tests-only-001")
admin.mount_to(app)
