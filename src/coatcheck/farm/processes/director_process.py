"""The process of one director worker; the workers of a farm share the port."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from typing import Any

import msgspec

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.farm.control.lines import Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import DirectorRole
from coatcheck.farm.settings.error_pages import load_error_pages


async def run(role: DirectorRole, control: ProcessControl) -> None:
    """Route requests until told to stop, then finish the open ones."""
    servers = tuple(
        WebServer(
            upstream.name,
            upstream.address.host,
            upstream.address.port,
            upstream.tag,
            path=upstream.address.path,
            credential=role.credential,
        )
        for upstream in role.upstreams
    )
    tls = None
    if role.tls_certificate:
        from coatcheck.farm.processes.farm_tls import FarmTls  # most of the start of a process that speaks no TLS

        tls = FarmTls(role.name, role.tls_certificate, role.tls_key, role.tickets, role.sessions)
    stored = tls.stored if tls is not None else None
    director = EmbeddedDirector(
        DirectorOptions(
            servers=servers,
            host=role.address.host,
            port=role.address.port,
            route_cookie=role.route_cookie,
            error_pages=load_error_pages(role.error_pages),
            tls=tls.context if tls is not None else None,
            around_handshake=stored.ahead() if stored is not None and not stored.why_off else None,
            trusted_proxies=role.trusted_proxies,
            **msgspec.structs.asdict(role.limits),
        )
    )

    async def status(message: Message) -> dict[str, Any]:
        found = director.status()
        return {"status": found if tls is None else {**found, "tls": tls.status()}}

    async def drain(message: Message) -> dict[str, Any]:
        director.drain(message["server"])
        return {}

    async def admit(message: Message) -> dict[str, Any]:
        director.admit(message["server"])
        return {}

    async def died(message: Message) -> dict[str, Any]:
        director.server_died(message["server"])
        return {}

    control.on({"status": status, "drain": drain, "admit": admit, "died": died})
    if tls is not None:
        control.on(tls.operations())
        if tls.why_off:
            control.warn(f"{role.name}: TLS sessions are not shared with the other director workers: {tls.why_off}")
    for name in role.drained:
        director.drain(name)
    listener = socket.socket(fileno=role.listener)
    async with stored.reach_store() if stored is not None else nullcontext():
        if role.passes_tls:
            from coatcheck.takeover.io.passing_door import PassingDoor

            await director.start(entrance=lambda relay: PassingDoor(relay, listener, role.limits.kept_body_bytes))
        else:
            await director.start(listener)
        await director.wait_for_first_checks()
        control.ready()
        await control.stopping.wait()
        await director.stop(role.stop_grace_s)
