"""The process of one web server: the user's app, unmodified, behind the session middleware."""

from __future__ import annotations

import asyncio
import gc
import os
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coatcheck.audit import AuditLog
from coatcheck.connecting import open_sessions
from coatcheck.drivers.asked_in_threads import LoopAskedInThreads
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConfigError
from coatcheck.events import Observer, both
from coatcheck.farm.control.lines import Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import WebServerRole
from coatcheck.farm.processes.application import (
    HAS_ITS_OWN,
    installs_starlette_sessions,
    interface_of,
    keeps_own_sessions,
    load_application,
)
from coatcheck.farm.processes.asked_keys import AskedKeys
from coatcheck.farm.processes.front_door import App, AppShell
from coatcheck.farm.processes.http_server import serve_with_granian, serve_with_uvicorn
from coatcheck.farm.processes.moving_in import moving_in_of
from coatcheck.farm.processes.session_answers import session_answers
from coatcheck.farm.settings.error_pages import load_error_pages
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware
from coatcheck.web.bridge.asgi import WsgiBridge
from coatcheck.web.bridge.thread_pool import ThreadPool

if TYPE_CHECKING:
    from coatcheck.farm.processes.tls_end import TlsEnd
    from coatcheck.service.signals.wiring import Signals

GC_THRESHOLD = 10_000
"""Objects between two young collections; the interpreter's 700 would be one for every few requests."""
SERVER_VARIABLE = "COATCHECK_SERVER"
"""The environment variable that tells the app which web server it runs in."""


async def run(role: WebServerRole, control: ProcessControl) -> None:
    """Serve the app until told to stop, then finish the open requests and settle the sessions."""
    os.environ[SERVER_VARIABLE] = role.name
    app = load_application(role.app, role.factory, role.interface)
    if keeps_own_sessions(app):
        control.warn(f"{role.app} {HAS_ITS_OWN}")
    if installs_starlette_sessions(app):
        control.warn(
            f"{role.app} installs Starlette's SessionMiddleware: it hides coatcheck's session, "
            "so sessions are not shared; remove it from the app"
        )
    moving_in = moving_in_of(role.moving_in)
    audit = AuditLog(Path(role.audit_file), role.audit_max_bytes, role.name) if role.audit_max_bytes else None
    asking = AskedKeys(control)
    signals = _signals_of(role)
    observers: list[Observer] = [each.observe for each in (audit, signals) if each is not None]
    sessions = open_sessions(
        role.sessions,
        observer=reduce(both, observers) if observers else None,
        cookies=role.cookies,
        refresh_keys=asking.refresh,
    )
    await sessions.start()
    if signals is not None:
        signals.start(sessions)
    pages = load_error_pages(role.error_pages)
    pool: ThreadPool | None = None
    if interface_of(app, role.app, role.interface) == "wsgi":
        pool = ThreadPool(role.threads)
        app = WsgiBridge(app, pool, LoopAskedInThreads(sessions), pages)
    # granian sends no headers with the acceptance of a WebSocket, and so cannot say that the app has opted in.
    durable = role.server != "granian" and role.ends_tls is None
    inner: App = SessionMiddleware(app, sessions, role.cookies, role.route_tag, pages, role.sticky, durable, moving_in)
    door = AppShell(inner, control.stopping)
    tls_end = _tls_end_of(role, control)
    control.on(_operations(door, sessions, tls_end, asking, signals, pool))
    if tls_end is not None:
        control.on(tls_end.operations())
        if tls_end.why_off:
            control.warn(f"{role.name}: TLS sessions are not shared with the other web servers: {tls_end.why_off}")
    serve = serve_with_granian if role.server == "granian" else serve_with_uvicorn
    opening: list[asyncio.Task[None]] = []

    def started() -> None:
        if tls_end is None:
            ready()
        else:
            opening.append(asyncio.create_task(open_tls_end(tls_end)))

    async def open_tls_end(tls_end: TlsEnd) -> None:
        await tls_end.start()
        ready()
        await control.stopping.wait()
        await tls_end.stop(role.stop_grace_s)

    def ready() -> None:
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 10, 10)
        control.ready()

    try:
        await serve(door, role, control.stopping, started)
        if opening:
            await opening[0]
    finally:
        if signals is not None:
            await signals.aclose()
        await sessions.aclose()
        if audit is not None:
            audit.close()


def _tls_end_of(role: WebServerRole, control: ProcessControl) -> TlsEnd | None:
    """Who ends TLS here, if anybody does; else none of it is imported, which is most of a process's start."""
    if role.ends_tls is None:
        return None
    from coatcheck.farm.processes.tls_end import TlsEnd

    return TlsEnd(role, role.ends_tls, lambda: not control.stopping.is_set())


def _signals_of(role: WebServerRole) -> Signals | None:
    """Who tells others when sessions end here, if anybody is to be told; else none of it is imported."""
    if not role.signals:
        return None
    try:
        from coatcheck.service.signals.wiring import told_by
    except ModuleNotFoundError as error:
        raise ConfigError(f"signals: {error.name} is missing; pip install 'coatcheck[service]'") from None
    return told_by(role.signals, KeyRing(role.sessions.keys, role.sessions.primary_key), role.sessions.farm)


def _operations(
    door: AppShell,
    sessions: Sessions,
    tls_end: TlsEnd | None,
    asking: AskedKeys,
    signals: Signals | None,
    pool: ThreadPool | None,
) -> dict[str, Any]:
    async def status(message: Message) -> dict[str, Any]:
        own = {**sessions.status(), "requests": door.requests, "in_flight": door.in_flight}
        if signals is not None:
            own["signals"] = signals.status()
        if pool is not None:
            own["threads"] = pool.status()
        return {"status": own if tls_end is None else {**own, "tls": tls_end.status()}}

    async def hang_up(message: Message) -> dict[str, Any]:
        door.hang_up()
        return {}

    async def change_keys(message: Message) -> dict[str, Any]:
        keys, primary = [bytes.fromhex(key) for key in message["keys"]], int(message["primary"])
        sessions.change_keys(keys, primary)
        if tls_end is not None:
            tls_end.change_keys(keys, primary)
        if signals is not None:
            signals.change_keys(keys, primary)
        asking.hear(message)
        return {}

    return {
        "status": status,
        "keys": change_keys,
        "hang_up": hang_up,
        **session_answers(sessions),
    }
