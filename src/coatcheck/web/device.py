"""What the middleware answers in the app's place about bound sessions (W3C DBSC; protocol section 13)."""

from __future__ import annotations

from urllib.parse import quote

from coatcheck.device.headers import SKIPPED
from coatcheck.drivers.device_desk import DeviceDesk
from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.answer import Answer, CookieTransport
from coatcheck.sessions.opened import Opened
from coatcheck.web.interface import Middleware, Receive, Scope, Send


class DeviceDoor:
    """Two addresses that the app never sees, and browsers that must sign before the app sees them."""

    def __init__(self, middleware: Middleware, transport: CookieTransport, path: str | None) -> None:
        """``path``: :attr:`CookiePolicy.device_path`, which answers of logins offer from now on."""
        self._middleware = middleware
        transport.device_path = path
        self._desk = None if path is None else DeviceDesk(transport, path)

    def concerns(self, opened: Opened, scope: Scope) -> bool:
        """Whether :meth:`answers` must look at a request at all."""
        desk, path, request = self._desk, scope["path"], opened.session._request
        if desk is None:
            return False
        if request.overdue or path == desk.register_path or path == desk.refresh_path:
            return True
        return not request.login and any(name == SKIPPED for name, _ in scope["headers"])

    async def answers(self, sessions: Sessions, opened: Opened, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the request was answered here."""
        desk, path = self._desk, scope["path"]
        if desk is None:
            return False
        if path == desk.register_path or path == desk.refresh_path:
            await self._own(desk, sessions, opened, scope, send)
            return True
        if opened.session._request.overdue:
            answer = desk.prove_first(scope["method"], _target(scope))
        elif (waits := await desk.waits(sessions, opened, scope["headers"])) is not None:
            answer = waits
        else:
            return False
        await self._send(scope, send, answer, b"")
        return True

    async def _own(self, desk: DeviceDesk, sessions: Sessions, opened: Opened, scope: Scope, send: Send) -> None:
        if scope["method"] != "POST":
            await self._send(scope, send, Answer(405, [(b"allow", b"POST")], refused="POST only"), b"")
            return
        asked = desk.register if scope["path"] == desk.register_path else desk.refresh
        answer, body = await asked(sessions, opened, scope["headers"])
        await self._send(scope, send, answer, body)

    async def _send(self, scope: Scope, send: Send, answer: Answer, body: bytes) -> None:
        if answer.refused:
            await self._middleware.refuse(scope, send, answer, "bound session")
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)})
        await send({"type": "http.response.body", "body": body})


def _target(scope: Scope) -> str:
    """Path and query as they were sent, as far as the server tells."""
    raw = scope.get("raw_path")
    path = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path
