"""The process of one director worker; the workers of a farm share the port."""

from __future__ import annotations

from typing import Any

from coatcheck.director import DirectorOptions, EmbeddedDirector, WebServer
from coatcheck.farm.control import Message
from coatcheck.farm.process_control import ProcessControl
from coatcheck.farm.roles import DirectorRole


async def run(role: DirectorRole, control: ProcessControl) -> None:
    """Route requests until told to stop, then finish the open ones."""
    servers = tuple(
        WebServer(upstream.name, upstream.address.host, upstream.address.port, upstream.tag)
        for upstream in role.upstreams
    )
    director = EmbeddedDirector(
        DirectorOptions(servers=servers, host=role.address.host, port=role.address.port, route_cookie=role.route_cookie)
    )

    async def status(message: Message) -> dict[str, Any]:
        return {"status": director.status()}

    async def drain(message: Message) -> dict[str, Any]:
        director.drain(message["server"])
        return {}

    async def admit(message: Message) -> dict[str, Any]:
        director.admit(message["server"])
        return {}

    control.on({"status": status, "drain": drain, "admit": admit})
    for name in role.drained:
        director.drain(name)
    await director.start()
    control.ready()
    await control.stopping.wait()
    await director.stop(role.stop_grace_s)
