"""The process of one embedded session server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coatcheck.farm.control.lines import Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.ports import listen
from coatcheck.farm.plan.roles import Handover, OutsideItems, SessionServerRole
from coatcheck.session_server.handover import HandoverRefused, handover_box
from coatcheck.session_server.server import SessionServer
from coatcheck.session_server.state import Items


async def run(role: SessionServerRole, control: ProcessControl) -> None:
    """Keep copies until told to stop; take over those of the last stop, and hand ours over when asked."""
    server = SessionServer(
        role.name,
        password=role.password,
        sock=listen(role.address),
        max_bytes=role.max_bytes,
        max_entries=role.max_entries,
        items=_forwarded(role.items) if role.items is not None else None,
    )

    async def status(message: Message) -> dict[str, Any]:
        return {"status": server.status()}

    async def sealed_by(message: Message) -> dict[str, Any]:
        return {"sealed_by": await server.sealed_by()}

    control.on({"status": status, "sealed_by": sealed_by})
    if role.handover is not None:
        await _take_over(server, role.handover, control)
        control.on({"hand_over": _hand_over(server, role.handover)})
    await server.start()
    control.ready()
    await control.stopping.wait()
    await server.stop()


def _forwarded(outside: OutsideItems) -> Items:
    from coatcheck.farm.processes.forwarded_items import ForwardedItems
    from coatcheck.stores.take_once.opening import items_at

    limit_s = outside.limit_s
    return ForwardedItems([items_at(each, outside.farm, limit_s) for each in outside.session_servers], limit_s)


async def _take_over(server: SessionServer, handover: Handover, control: ProcessControl) -> None:
    for path in map(Path, handover.take):
        box = handover_box(handover.secrets, handover.primary, handover.farm)
        try:
            taken = await server.take_over(path, handover.last_run, box, handover.limit_s)
        except HandoverRefused as refused:
            control.warn(f"{server.name}: the sessions in {path.name} are not taken over: {refused}")
        else:
            control.warn(f"{server.name}: took over {taken} sessions of the last stop from {path.name}")


def _hand_over(server: SessionServer, handover: Handover) -> Any:
    async def hand_over(message: Message) -> dict[str, Any]:
        secrets = tuple(bytes.fromhex(secret) for secret in message["secrets"])
        box = handover_box(secrets, message["primary"], handover.farm)
        return {"entries": await server.hand_over(Path(handover.give), handover.run, box)}

    return hand_over
