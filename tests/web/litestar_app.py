"""A Litestar app as Litestar's documentation writes one, unmodified, behind our middleware."""

from __future__ import annotations

import os
from typing import Any

from litestar import Litestar, Request, get, post

from coatcheck import CookiePolicy, SessionMiddleware, connect


@get("/")
async def show(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return dict(request.session)


@post("/login")
async def login(request: Request[Any, Any, Any]) -> str:
    request.set_session({"user": "ada", "cart": ["tea"]})
    return "in"


@post("/add")
async def add(request: Request[Any, Any, Any]) -> str:
    request.session["cart"].append("milk")
    return "added"


@post("/logout")
async def logout(request: Request[Any, Any, Any]) -> str:
    request.clear_session()
    return "out"


@post("/empty")
async def empty(request: Request[Any, Any, Any]) -> str:
    request.set_session({})
    return "empty"


app = SessionMiddleware(
    Litestar([show, login, add, logout, empty]),
    connect(f"sqlite:///{os.environ['SESSIONS_FILE']}", key="m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"),
    CookiePolicy(insecure_localhost=True),
)
