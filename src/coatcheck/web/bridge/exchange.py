"""What a thread that runs a WSGI app and the event loop that its request came to hand each other.

The thread gives orders, the event loop carries them out one after the other, in the task of the request: so the
session middleware around it sees one request like any other. The thread waits until the head of its response has left
(the session is stored then) and until its last piece has left; for the pieces between only while too much of them is
on its way.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from coatcheck.web.interface import Message, Receive, Send
from coatcheck.web.open_websocket import HungUp

MAX_UNSENT_BYTES: Final = 256 * 1024
"""Of one response: what its app may be ahead of its client, beside what the web server's own buffer takes."""

MAX_AHEAD_BYTES: Final = 32 * 1024
"""Of one request's body: what is waited for before a thread is taken, so that small bodies of slow clients keep none;
beside one message of the web server."""

EXPECT: Final = b"expect"


class ClientGone(ConnectionAbortedError):
    """What an app in a thread is told when its client is gone: by what it reads, and by the next piece of a stream."""


class _Order:
    """Something that the event loop is to do: send these messages, or (of none) receive one."""

    __slots__ = ("error", "is_done", "is_last", "messages", "received", "size")

    def __init__(self, messages: Sequence[Message] = (), size: int = 0, is_last: bool = False) -> None:
        self.messages = messages
        self.size = size
        self.is_last = is_last
        """Whether the app is done, in order or by ``error``."""
        self.error: BaseException | None = None
        self.received: Message | None = None
        self.is_done = False


class Exchange:
    """Of one request. What the thread calls is marked; all else is for the event loop."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._send = send
        self._orders: deque[_Order] = deque()
        self._woken = asyncio.Event()
        self._changed = threading.Condition()
        self._unsent = 0
        self._broken: BaseException | None = None
        """Why nothing more can be sent."""
        self._is_gone = False
        """Whether the client is known to have left."""
        self._listening: asyncio.Task[Message] | None = None
        self._ahead = bytearray()
        self._has_more = True
        """Whether there is more of the request's body than was received."""

    # -- on the event loop -----------------------------------------------------------------------------

    async def read_ahead(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Receive the body, if it is small; ``False``: its client has left meanwhile.

        A client that asks first (``Expect: 100-continue``) is answered when the app reads.
        """
        if any(name == EXPECT for name, _ in headers):
            return True
        while self._has_more and len(self._ahead) < MAX_AHEAD_BYTES:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return False
            self._ahead += message.get("body", b"")
            self._has_more = message.get("more_body", False)
        return True

    async def carry(self) -> None:
        """Do what the thread orders until its app is done. Raises what the app raised, and what its response could not
        be sent for; a client that has left is no error."""
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                while self._orders:
                    order = self._orders.popleft()
                    if order.is_last:
                        self._raise(order.error or self._broken)
                        return
                    await self._do(order)
        finally:
            self._break(ClientGone("the request was ended"))
            if self._listening is not None:
                self._listening.cancel()

    def _raise(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, ClientGone):
            return
        if isinstance(error, Exception):
            raise error
        raise RuntimeError(f"the app raised {type(error).__name__}, by which a thread of a web server ends") from error

    async def _do(self, order: _Order) -> None:
        try:
            if order.messages:
                for message in order.messages:
                    if self._broken is None:
                        await self._send(message)
                if self._listening is None and order.messages[-1].get("more_body"):
                    self._listen()
            else:
                order.received = await self._next_message()
        except HungUp as error:
            self._break(error)
        except OSError:
            self._break(ClientGone("the client has left"))
        except Exception as error:  # noqa: BLE001 - it belongs to the thread
            self._break(error)
        with self._changed:
            order.is_done = True
            self._unsent -= order.size
            self._changed.notify()

    async def _next_message(self) -> Message:
        if self._listening is None:
            return await self._receive()
        listening = self._listening
        message = await listening
        if message["type"] != "http.disconnect":
            self._listen()
        return message

    def _listen(self) -> None:
        """While a stream leaves, hear of its client's leaving: sending says nothing of it."""
        self._listening = self._loop.create_task(self._hear())
        self._listening.add_done_callback(self._heard)

    async def _hear(self) -> Message:
        return await self._receive()  # which in granian is no coroutine

    def _heard(self, listening: asyncio.Task[Message]) -> None:
        if listening.cancelled():
            return
        error = listening.exception()
        if error is not None or listening.result()["type"] == "http.disconnect":
            with self._changed:
                self._is_gone = True
                self._changed.notify()

    def _break(self, error: BaseException) -> None:
        with self._changed:
            if self._broken is None:
                self._broken = error
            self._changed.notify()

    # -- in the thread ---------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """In the thread: whether nobody waits for the app any more, before it has begun."""
        return self._broken is not None

    def send(self, messages: Sequence[Message], size: int, *, waits: bool) -> None:
        """In the thread: send these messages with ``size`` bytes of a body. ``waits``: until they have left.

        Raises what the event loop was told instead, such as :class:`SessionDataError`, and :class:`ClientGone` in a
        stream whose client has left.
        """
        order = _Order(messages, size)
        with self._changed:
            while not waits and self._unsent and self._unsent + size > MAX_UNSENT_BYTES and not self._may_not_send():
                self._changed.wait()
            if self._broken is not None:
                raise self._broken
            if self._is_gone and not waits:
                raise ClientGone("the client has left")
            self._unsent += size
            self._give(order)
            while waits and not order.is_done and self._broken is None:
                self._changed.wait()
            if self._broken is not None:
                raise self._broken

    def _may_not_send(self) -> bool:
        return self._is_gone or self._broken is not None

    def read(self) -> bytes:
        """In the thread: more of the request's body; empty at its end. Raises :class:`ClientGone`."""
        if self._ahead:
            ahead, self._ahead = bytes(self._ahead), bytearray()
            return ahead
        while self._has_more:
            message = self._ask_for_message()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client has left in the middle of its request")
            self._has_more = message.get("more_body", False)
            if body := message.get("body", b""):
                return bytes(body)
        return b""

    def _ask_for_message(self) -> Message:
        order = _Order()
        with self._changed:
            self._give(order)
            while not order.is_done and self._broken is None:
                self._changed.wait()
        if order.received is None:
            raise self._broken or ClientGone("the request was ended")
        return order.received

    def end(self, error: BaseException | None) -> None:
        """In the thread, at last: the app is done; ``error``: by it."""
        order = _Order(is_last=True)
        order.error = error
        self._give(order)

    def _give(self, order: _Order) -> None:
        self._orders.append(order)
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # the event loop is closed
            self._break(ClientGone("the web server has stopped"))


def answered(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """The head of a response."""
    return {"type": "http.response.start", "status": status, "headers": headers}


def piece(body: bytes, more: bool) -> dict[str, Any]:
    """A piece of its body."""
    return {"type": "http.response.body", "body": body, "more_body": more}
