"""Who an app's client is, behind the director: as the director says, whose connection was checked when it was made."""

from __future__ import annotations

import logging
from typing import Final

from coatcheck.farm.plan.roles import LOOPBACK
from coatcheck.farm.processes.front_door import App, Receive, Scope, Send

log: Final = logging.getLogger("uvicorn.error")
"""Where uvicorn says the same of an app that fails before its answer is complete."""


class FromDirector:
    """An ASGI app before the one that reads ``X-Forwarded-*``: the connection comes from a director on this machine.

    A Unix socket has no address, and what reads those headers believes addresses alone.

    What an app raises behind a complete answer (Starlette does so with each error of a handler) is logged here, and
    goes no further: uvicorn would close the connection without a word, and with it fail the next request, which the
    director may have sent by then.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["client"] = (LOOPBACK, 0)
            server = scope.get("server")
            if server is not None and "/" in server[0]:
                # The path of a socket is no host that a client asked for; the Host header says which one it was.
                scope["server"] = None
        try:
            await self._app(scope, receive, send)
        except Exception:
            if not _is_answered(send):
                raise
            log.exception("Exception in ASGI application")


def _is_answered(send: Send) -> bool:
    """Whether uvicorn has the whole answer of the request that ``send`` belongs to. Other servers (granian) let their
    connections go on by themselves."""
    return getattr(getattr(send, "__self__", None), "response_complete", False) is True
