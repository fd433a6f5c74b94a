"""The process of one web server: the user's app, unmodified, behind the session middleware."""

from __future__ import annotations

import gc
import os
from typing import Any

from coatcheck.farm.application import installs_starlette_sessions, load_application
from coatcheck.farm.control import Message
from coatcheck.farm.front_door import App, FrontDoor
from coatcheck.farm.http_server import serve_with_granian, serve_with_uvicorn
from coatcheck.farm.process_control import ProcessControl
from coatcheck.farm.roles import WebServerRole
from coatcheck.farm.sessions import cookie_policy, open_sessions
from coatcheck.web.asgi import SessionMiddleware

SERVER_VARIABLE = "COATCHECK_SERVER"
"""The environment variable that tells the app which web server it runs in."""


async def run(role: WebServerRole, control: ProcessControl) -> None:
    """Serve the app until told to stop, then finish the open requests and settle the sessions."""
    os.environ[SERVER_VARIABLE] = role.name
    app = load_application(role.app, role.factory)
    if installs_starlette_sessions(app):
        control.warn(
            f"{role.app} installs Starlette's SessionMiddleware: it hides coatcheck's session, "
            "so sessions are not shared; remove it from the app"
        )
    sessions = open_sessions(role.sessions)
    await sessions.open()
    inner: App = SessionMiddleware(app, sessions, cookies=cookie_policy(role.sessions), route_tag=role.route_tag)
    door = FrontDoor(inner)
    control.on(_operations(door, sessions))
    serve = serve_with_granian if role.server == "granian" else serve_with_uvicorn

    def started() -> None:
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        control.ready()

    try:
        await serve(door, role, control.stopping, started)
    finally:
        await sessions.aclose()


def _operations(door: FrontDoor, sessions: Any) -> dict[str, Any]:
    async def status(message: Message) -> dict[str, Any]:
        counts = {"requests": door.requests, "in_flight": door.in_flight, "draining": door.draining}
        return {"status": {**sessions.status(), **counts}}

    async def drain(message: Message) -> dict[str, Any]:
        door.draining = True
        return {}

    async def undrain(message: Message) -> dict[str, Any]:
        door.draining = False
        return {}

    async def list_sessions(message: Message) -> dict[str, Any]:
        return {"sessions": await sessions.list(int(message["limit"]))}

    async def show(message: Message) -> dict[str, Any]:
        return {"session": await sessions.show(message["key"])}

    async def close(message: Message) -> dict[str, Any]:
        return {"closed": await sessions.close_key(message["key"])}

    return {
        "status": status,
        "drain": drain,
        "undrain": undrain,
        "sessions.ls": list_sessions,
        "sessions.show": show,
        "sessions.close": close,
    }
