"""The process of one embedded session server."""

from __future__ import annotations

from typing import Any

from coatcheck.farm.control import Message
from coatcheck.farm.ports import listen
from coatcheck.farm.process_control import ProcessControl
from coatcheck.farm.roles import SessionServerRole
from coatcheck.stores.session_server import SessionServer


async def run(role: SessionServerRole, control: ProcessControl) -> None:
    """Keep copies until told to stop."""
    server = SessionServer(role.name, password=role.password, sock=listen(role.address))

    async def status(message: Message) -> dict[str, Any]:
        return {"status": server.status()}

    control.on({"status": status})
    await server.start()
    control.ready()
    await control.stopping.wait()
    await server.stop()
