"""Who an app's client is, behind the director: as the director says, whose connection was checked when it was made."""

from __future__ import annotations

from coatcheck.farm.plan.roles import LOOPBACK
from coatcheck.farm.processes.front_door import App, Receive, Scope, Send


class FromDirector:
    """An ASGI app before the one that reads ``X-Forwarded-*``: the connection comes from a director on this machine.

    A Unix socket has no address, and what reads those headers believes addresses alone.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["client"] = (LOOPBACK, 0)
            server = scope.get("server")
            if server is not None and "/" in server[0]:
                # The path of a socket is no host that a client asked for; the Host header says which one it was.
                scope["server"] = None
        await self._app(scope, receive, send)
