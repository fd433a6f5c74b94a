"""A WebSocket over TLS for tests that wait: one thread reads and writes it.

The client of ``websockets.sync`` reads in a thread of its own, while the test writes. Python 3.11's ``ssl`` does not
stand that: about one of two hundred such connections loses what is written while the server's TLS tickets are read,
also to a server of Python's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from ssl import SSLContext
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect

T = TypeVar("T")
DEADLINE_S = 60.0


class WebSocketOverTls:
    """What a test asks of it; each call raises what the client of ``websockets.asyncio`` does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, tls: SSLContext, headers: dict[str, str]) -> None:
        self._loop = loop

        async def begin() -> ClientConnection:
            return await connect(address, ssl=tls, additional_headers=headers, open_timeout=DEADLINE_S)

        self._connection = self._run(begin())

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float = DEADLINE_S) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def send(self, message: str) -> None:
        self._run(self._connection.send(message))

    def recv(self, timeout_s: float = DEADLINE_S) -> str | bytes:
        return self._run(self._connection.recv(), timeout_s)

    def close(self) -> None:
        self._run(self._connection.close())


@contextlib.contextmanager
def websocket_over_tls(
    address: str, tls: SSLContext, headers: dict[str, str] | None = None
) -> Iterator[WebSocketOverTls]:
    """One to ``address``; closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        websocket = WebSocketOverTls(loop, address, tls, headers or {})
        try:
            yield websocket
        finally:
            websocket.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()
