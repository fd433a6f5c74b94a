"""NiceGUI inside a FastAPI app as its documentation shows (``ui.run_with``), behind our middleware."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request
from nicegui import app as nicegui_app
from nicegui import ui

from coatcheck import CookiePolicy, SessionMiddleware, connect

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"

api = FastAPI()


@api.post("/count")
async def count(request: Request) -> int:
    request.session["n"] = request.session.get("n", 0) + 1
    return int(request.session["n"])


@ui.page("/page")
def page() -> None:
    nicegui_app.storage.user["seen"] = nicegui_app.storage.user.get("seen", 0) + 1
    ui.label(f"seen {nicegui_app.storage.user['seen']} times")


ui.run_with(api, storage_secret="s" * 32)
app = SessionMiddleware(
    api,
    connect(
        f"sqlite:///{os.environ['SESSIONS_FILE']}",
        key=KEY,
        server=os.environ["SERVER_NAME"],
    ),
    CookiePolicy(insecure_localhost=True),
)
