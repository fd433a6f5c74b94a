"""An ASGI app around a WSGI app: what ``coatcheck serve`` puts between its session middleware and a WSGI app.

``environ["coatcheck.session"]`` is ``scope["session"]``, as it is under ``coatcheck.web.wsgi``.
"""

from __future__ import annotations

import contextvars
from functools import partial
from typing import Any

from coatcheck.drivers.asked_in_threads import AskedInThreads
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.sessions.answer import Answer
from coatcheck.web.bridge.environ import environ_of
from coatcheck.web.bridge.exchange import Exchange, answered, piece
from coatcheck.web.bridge.handler import WsgiApp, WsgiHandler
from coatcheck.web.bridge.thread_pool import ThreadPool
from coatcheck.web.error_page import ErrorPage, page_for
from coatcheck.web.interface import Receive, Scope, Send
from coatcheck.web.wsgi import KEY, SESSIONS_KEY


class WsgiBridge:
    """Calls ``app`` in one of the threads of ``pool``. ``sessions``: what the app finds in ``environ`` to ask more of
    its session by; ``error_pages``: what it looks like when no thread can be waited for."""

    def __init__(
        self,
        app: WsgiApp,
        pool: ThreadPool,
        sessions: AskedInThreads | None = None,
        error_pages: ErrorPages | ErrorPage | None = None,
    ) -> None:
        self.app = app
        self.pool = pool
        self._sessions = sessions
        self._error_pages = error_pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await _live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000, "reason": "a WSGI app has no WebSockets"})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.pool.is_full:
            await self._refuse(scope, send)
            return
        exchange = Exchange(receive, send)
        if not await exchange.read_ahead(scope["headers"]):
            return
        variables = environ_of(scope)
        if "session" in scope:
            variables[KEY] = scope["session"]
            variables[SESSIONS_KEY] = self._sessions
        handler = WsgiHandler(exchange, variables, scope.get("scheme", "http"))
        context = contextvars.copy_context()
        if not self.pool.submit(partial(context.run, self._run, handler, exchange)):
            await self._refuse(scope, send)
            return
        await exchange.carry()

    def _run(self, handler: WsgiHandler, exchange: Exchange) -> None:
        """In a thread."""
        error: BaseException | None = None
        try:
            if not exchange.is_over:
                handler.run(self.app)
        except BaseException as raised:  # noqa: BLE001 - it is raised where the request is waited for
            error = raised
        exchange.end(error)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        answer = Answer.refusal(SessionUnavailable(UnavailableReason.CONTENDED))
        page = page_for(self._error_pages, scope, answer.status, "no thread is free: too many requests wait for one")
        length = (b"content-length", b"%d" % len(page.body))
        await send(answered(answer.status, [*page.headers, length, *answer.headers]))
        await send(piece(page.body, more=False))


async def _live(receive: Receive, send: Send) -> None:
    """WSGI knows no start and no end."""
    while True:
        message: Any = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
