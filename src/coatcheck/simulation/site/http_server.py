"""What runs the app inside a simulated web server: uvicorn's HTTP protocol, behind the guard, as in a farm."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from coatcheck.farm.processes.front_door import App, AppShell
from coatcheck.farm.processes.guard import Guard
from coatcheck.farm.processes.told_by_director import FromDirector

HTTP_PORT: Final = 8001
CREDENTIAL: Final = "simulated-credential"


async def listen(name: str, host: str, app: App) -> AppShell:
    """Serve ``app`` on this host until the process is killed; answers the layer that counts its requests."""
    shell = AppShell(app, asyncio.Event())
    served: Any = FromDirector(shell)
    config = Config(
        served,
        http=HttpToolsProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    guard = Guard(name, CREDENTIAL, unix=False)

    def protocol() -> asyncio.Protocol:
        return HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop)

    await loop.create_server(lambda: guard.protocol(protocol), host, HTTP_PORT)
    return shell
