"""The process of a session service that a farm starts beside its web servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from coatcheck.audit import AuditLog
from coatcheck.drivers.key_refresh import KeyRefresh
from coatcheck.errors import ConfigError
from coatcheck.farm.control.lines import Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import SessionServiceRole
from coatcheck.farm.processes.asked_keys import AskedKeys

MISSING = "service: {name} is missing; pip install 'coatcheck[service]'"


async def run(role: SessionServiceRole, control: ProcessControl) -> None:
    """Serve until told to stop, then finish the open requests and settle the sessions."""
    try:
        from coatcheck.service.service import SessionService
        from coatcheck.service_kit.http_server import serve_on_this_loop
    except ModuleNotFoundError as error:
        raise ConfigError(MISSING.format(name=error.name)) from None
    audit = AuditLog(Path(role.audit_file), role.audit_max_bytes, role.name) if role.audit_max_bytes else None
    observer = audit.observe if audit is not None else None
    signals = Path(role.signals) if role.signals else None
    asking = AskedKeys(control)
    service = SessionService(
        role.sessions,
        role.cookies,
        Path(role.callers),
        observer=observer,
        signals=signals,
        # One question at a time, of callers and cookies together: an answer has no number.
        refresh_keys=KeyRefresh(asking.refresh),
    )

    async def status(message: Message) -> dict[str, Any]:
        return {"status": service.status()}

    async def change_keys(message: Message) -> dict[str, Any]:
        service.change_keys([bytes.fromhex(key) for key in message["keys"]], int(message["primary"]))
        asking.hear(message)
        return {}

    control.on({"status": status, "keys": change_keys})
    stopping = asyncio.create_task(_stop(control, service.stop))
    try:
        await serve_on_this_loop(service.app(), str(role.address), control.ready, control.stopping)
    finally:
        stopping.cancel()
        if audit is not None:
            audit.close()


async def _stop(control: ProcessControl, stop: Any) -> None:
    await control.stopping.wait()
    stop()
