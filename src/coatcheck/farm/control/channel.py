"""The control channel: JSON objects, one a line, over a unix socket.

The supervisor talks so with each of its processes (over a socket pair that they inherit, so that its end is
the end of the supervisor), and the command line with the supervisor (over ``control.sock``). Only the farm's
owner can open either.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.farm.control.lines import MAX_LINE_BYTES, ControlError, Message, decode, encode, short_path

MAX_REQUEST_BYTES: Final = 1 << 20
MAX_CALLERS: Final = 32


class Peer:
    """Our end of a channel: numbered requests that wait for their reply, and events from the other side.

    ``on_event`` gets each message without a number. :attr:`closed` is set when the other side is gone.
    """

    MAX_WAITING = 64

    def __init__(self, sock: socket.socket, on_event: Callable[[Message], None]) -> None:
        self._sock = sock
        self._on_event = on_event
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    async def open(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._sock, limit=MAX_LINE_BYTES)
        self._task = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = decode(line)
                number = message.get("id")
                if number is None:
                    self._on_event(message)
                elif (waiting := self._waiting.pop(number, None)) and not waiting.done():
                    waiting.set_result(message)
        except (OSError, ValueError, ControlError):
            # A process that writes nonsense on its channel is as good as gone: its supervisor replaces it.
            pass
        finally:
            self._close()

    def _close(self) -> None:
        self.closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ControlError("the process is gone"))
        self._waiting.clear()
        if self._writer is not None:
            self._writer.close()

    async def call(self, operation: str, timeout_s: float, **arguments: Any) -> Message:
        """Send a request and wait for its reply.

        Raises:
            ControlError: gone, late, or an ``error`` in the reply.
        """
        if self.closed.is_set() or self._writer is None:
            raise ControlError("the process is gone")
        if len(self._waiting) >= self.MAX_WAITING:
            raise ControlError("the process answers nothing")
        self._next += 1
        number = self._next
        waiting: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(encode({"id": number, "op": operation, **arguments}))
                reply = await waiting
        except TimeoutError:
            raise ControlError(f"no answer to {operation} within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if "error" in reply:
            raise ControlError(str(reply["error"]))
        return reply

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._close()


Answer = Callable[[Message, Callable[[Message], None]], Awaitable[Message]]
"""Answers a request; the second argument sends a message of progress before the answer."""


class ControlServer:
    """The supervisor's ``control.sock``: each caller sends requests, one after the other."""

    IDLE_TIMEOUT_S = 60.0

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        with short_path(self._path) as path:
            sock.bind(path)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_REQUEST_BYTES)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        for caller in list(self._callers):
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._callers) >= MAX_CALLERS:
            writer.write(encode({"error": f"more than {MAX_CALLERS} callers; try again"}))
            writer.close()
            return
        self._callers.add(task)
        try:
            while True:
                async with asyncio.timeout(self.IDLE_TIMEOUT_S):
                    line = await reader.readline()
                if not line:
                    return
                writer.write(encode(await self._reply(line, writer)))
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            return
        finally:
            self._callers.discard(task)
            writer.close()

    async def _reply(self, line: bytes, writer: asyncio.StreamWriter) -> Message:
        try:
            return await self._answer(decode(line), lambda message: writer.write(encode(message)))
        except CoatcheckError as error:
            return {"error": str(error)}
