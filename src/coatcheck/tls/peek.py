"""Looking at a connection's ClientHello where it is, in the kernel (``MSG_PEEK``), without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from coatcheck.tls.client_hello import MAX_HELLO_BYTES, Incomplete, Reading, read_client_hello

MAX_PEEKS: Final = 16
"""So often a connection is looked at while its ClientHello grows. One in more pieces costs its client a full handshake,
and us no more looks."""


async def peek_hello(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> Reading:
    """What the first bytes of a connection are (:mod:`coatcheck.tls.client_hello`); they stay where they are.

    Raises ``ConnectionError`` if the client went away.
    """
    try:
        for _ in range(MAX_PEEKS):
            data = None
            with contextlib.suppress(BlockingIOError, InterruptedError):
                data = connection.recv(MAX_HELLO_BYTES, socket.MSG_PEEK)
            if data == b"":
                raise ConnectionResetError("the client went away before its ClientHello")
            if data:
                reading = read_client_hello(data)
                if not isinstance(reading, Incomplete) or len(data) >= MAX_HELLO_BYTES:
                    return reading
                # Half a hello: wake up when there is more of it, not for what is there already.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
            await _readable(loop, connection)
        return Incomplete()
    finally:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
