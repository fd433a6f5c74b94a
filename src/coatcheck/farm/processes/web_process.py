"""The process of one web server: the user's app, unmodified, behind the session middleware."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

import msgspec

from coatcheck.connecting import open_sessions
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import PUBLIC_ID_BYTES
from coatcheck.farm.control.channel import ControlError, Message
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import WebServerRole
from coatcheck.farm.processes.application import installs_starlette_sessions, load_application
from coatcheck.farm.processes.audit import AuditLog
from coatcheck.farm.processes.front_door import App, AppShell
from coatcheck.farm.processes.http_server import serve_with_granian, serve_with_uvicorn
from coatcheck.farm.processes.tls_end import TlsEnd
from coatcheck.farm.settings.error_pages import load_error_pages
from coatcheck.web.asgi import SessionMiddleware

KEY_BYTES = 16
MAX_USER_SHOWN = 128
"""Characters of a user's name in a list of sessions."""

GC_THRESHOLD = 10_000
"""Objects between two young collections; the interpreter's 700 would be one for every few requests."""
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
    audit = AuditLog(Path(role.audit_file), role.audit_max_bytes, role.name) if role.audit_max_bytes else None
    sessions = open_sessions(role.sessions, observer=audit.observe if audit is not None else None)
    await sessions.start()
    pages = load_error_pages(role.error_pages)
    inner: App = SessionMiddleware(app, sessions, role.cookies, role.route_tag, pages, role.sticky)
    door = AppShell(inner, control.stopping)
    tls_end = TlsEnd(role, role.ends_tls, lambda: not control.stopping.is_set()) if role.ends_tls is not None else None
    control.on(_operations(door, sessions, tls_end))
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
        await sessions.aclose()
        if audit is not None:
            audit.close()


async def _key(message: Message, sessions: Sessions) -> bytes | None:
    """The key that an operator means, who may write it or the ID of logs and audit records; ``None``: not stored."""
    text = str(message["key"]).lower()
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) == PUBLIC_ID_BYTES:
        return await sessions.find(text)
    if len(raw) != KEY_BYTES:
        raise ControlError(
            f"a session's ID has {2 * PUBLIC_ID_BYTES} hex digits, as logs show it, and its key {2 * KEY_BYTES}, "
            "as `coatcheck sessions ls` shows both"
        )
    return raw


def _operations(door: AppShell, sessions: Sessions, tls_end: TlsEnd | None) -> dict[str, Any]:
    async def status(message: Message) -> dict[str, Any]:
        own = {**sessions.status(), "requests": door.requests, "in_flight": door.in_flight}
        return {"status": own if tls_end is None else {**own, "tls": tls_end.status()}}

    async def hang_up(message: Message) -> dict[str, Any]:
        door.hang_up()
        return {}

    async def list_sessions(message: Message) -> dict[str, Any]:
        limit = int(message["limit"])
        # One more than asked for: whoever sees a part must be told that it is one.
        rows = msgspec.to_builtins(await sessions.list_sessions(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        for row in rows:
            # A user's name may be as long as a session's data; `sessions show` has all of it.
            row["user"] = row["user"] and row["user"][:MAX_USER_SHOWN]
        return {"sessions": rows, "more": more}

    async def show(message: Message) -> dict[str, Any]:
        key = await _key(message, sessions)
        return {"session": None if key is None else msgspec.to_builtins(await sessions.show(key))}

    async def close(message: Message) -> dict[str, Any]:
        key = await _key(message, sessions)
        if key is None:
            raise ControlError(f"there is no session {message['key']}")
        return {"closed": msgspec.to_builtins(await sessions.close_key(key))}

    async def change_keys(message: Message) -> dict[str, Any]:
        keys, primary = [bytes.fromhex(key) for key in message["keys"]], int(message["primary"])
        sessions.change_keys(keys, primary)
        if tls_end is not None:
            tls_end.change_keys(keys, primary)
        return {}

    return {
        "status": status,
        "keys": change_keys,
        "hang_up": hang_up,
        "sessions.ls": list_sessions,
        "sessions.show": show,
        "sessions.close": close,
    }
