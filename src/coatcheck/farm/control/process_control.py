"""A farm process's end of its control channel: it says when it is ready, and answers its supervisor."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.farm.control.lines import MAX_LINE_BYTES, Message, decode, encode

MAX_REQUESTS: Final = 64

Handler = Callable[[Message], Awaitable[dict[str, Any]]]


class ProcessControl:
    """Answers ``ping`` and ``status`` for every role, and the role's own operations.

    When the channel ends, the supervisor is dead and so is this process, at once.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._writer: asyncio.StreamWriter | None = None
        self._handlers: dict[str, Handler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.stopping = asyncio.Event()

    async def open(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=MAX_LINE_BYTES)
        self._spawn(self._read(reader))

    def on(self, handlers: Mapping[str, Handler]) -> None:
        """Answer these operations from now on."""
        self._handlers.update(handlers)

    def ready(self) -> None:
        """Tell the supervisor that this process does its work."""
        self._send({"event": "ready"})

    def failed(self, reason: str, config: bool) -> None:
        """Tell the supervisor why this process cannot start; ``config``: the user can mend it."""
        self._send({"event": "failed", "reason": reason, "config": config})

    def warn(self, text: str) -> None:
        """A line for the operator."""
        self._send({"event": "warning", "text": text})

    def ask(self, what: str) -> None:
        """Ask the supervisor for something; the answer comes as an operation of its own."""
        self._send({"event": "asks", "for": what})

    def _send(self, message: Message) -> None:
        if self._writer is not None:
            self._writer.write(encode(message))

    async def aclose(self) -> None:
        """Send what waits."""
        if self._writer is not None:
            await self._writer.drain()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                if len(self._tasks) < MAX_REQUESTS:
                    self._spawn(self._answer(decode(line)))
        except (OSError, ValueError, CoatcheckError):
            os._exit(1)
        os._exit(1)

    async def _answer(self, message: Message) -> None:
        operation = message.get("op")
        reply: dict[str, Any] = {}
        if operation == "stop":
            self.stopping.set()
        elif operation != "ping":
            handler = self._handlers.get(str(operation))
            try:
                reply = {"error": f"unknown operation {operation!r}"} if handler is None else await handler(message)
            except (CoatcheckError, ValueError, KeyError, OSError) as error:
                reply = {"error": f"{error}" or type(error).__name__}
        self._reply(message.get("id"), reply)

    def _reply(self, number: object, reply: Message) -> None:
        try:
            line = encode({**reply, "id": number})
        except (TypeError, ValueError) as error:
            # A session may hold what JSON cannot, such as a dict whose keys are tuples.
            line = encode({"error": f"cannot be shown as JSON: {error}", "id": number})
        if len(line) > MAX_LINE_BYTES:
            # The supervisor would take it for nonsense, and this process for lost.
            line = encode({"error": f"the answer is longer than {MAX_LINE_BYTES} bytes", "id": number})
        if self._writer is not None:
            self._writer.write(line)
