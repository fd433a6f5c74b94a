"""Event loops whose TLS servers fetch a client's session before its handshake begins, so that nothing blocks.

OpenSSL asks for a session in the middle of a handshake and wants its answer at once. So a connection's first bytes are
looked at where they are, in the kernel (``MSG_PEEK``); what they offer is fetched while the loop goes on; then the
handshake is given the untouched connection, and finds what it asks for. Only public parts of asyncio are used, and it
works on asyncio's and uvloop's loops alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from coatcheck.seldom import Seldom
from coatcheck.tls.client_hello import ClientHello
from coatcheck.tls.entrance import sessions_of
from coatcheck.tls.peek import peek_hello
from coatcheck.tls.sharing import LookedFor, SharedSessions
from coatcheck.tls.turnstile import Turnstile

HELLO_TIMEOUT_S: Final = 10.0
"""A client that has not sent its ClientHello by then is dropped."""
DEFAULT_HANDSHAKE_TIMEOUT_S: Final = 60.0
"""As asyncio has it."""
MAX_PEEKING: Final = 10_000
"""Connections whose ClientHello is waited for; further ones go to their handshake at once, and it is a full one."""
SHORTAGE_PAUSE_S: Final = 0.1

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class _FetchingAhead:
    """What is different about these loops: how they serve a context whose sessions are shared."""

    async def create_server(
        self, protocol_factory: ProtocolFactory, *arguments: Any, ssl: ssl.SSLContext | None = None, **options: Any
    ) -> Any:
        parent: Any = super()
        shared = sessions_of(ssl)
        if ssl is None or shared is None:
            return await parent.create_server(protocol_factory, *arguments, ssl=ssl, **options)
        handshake_timeout_s = options.pop("ssl_handshake_timeout", None)
        shutdown_timeout_s = options.pop("ssl_shutdown_timeout", None)
        start = options.pop("start_serving", True)
        backlog = options.get("backlog", 100)
        loop: Any = self
        given = options.get("sock")
        if given is None:
            # The loop itself knows best how to bind; it never accepts on these sockets.
            bound = await parent.create_server(protocol_factory, *arguments, start_serving=False, **options)
            listeners = [_own(each) for each in bound.sockets]
            bound.close()
        else:
            listeners = [_own(given)]
        server = AheadServer(
            loop,
            listeners,
            protocol_factory,
            ssl,
            shared,
            backlog=backlog,
            handshake_timeout_s=handshake_timeout_s or DEFAULT_HANDSHAKE_TIMEOUT_S,
            shutdown_timeout_s=shutdown_timeout_s,
            given=given,
        )
        if start:
            await server.start_serving()
        return server


def _own(sock: Any) -> socket.socket:
    """A descriptor of our own for a listening socket."""
    own = socket.socket(fileno=os.dup(sock.fileno()))
    own.setblocking(False)
    return own


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose TLS servers fetch shared sessions ahead of handshakes: uvloop's if it is installed, else asyncio's.

    Contexts that :func:`coatcheck.tls.share_sessions` was not told of are served as by any loop.
    """
    base: Any = asyncio.SelectorEventLoop
    with contextlib.suppress(ImportError):
        import uvloop

        base = uvloop.Loop
    loop: asyncio.AbstractEventLoop = fetching_ahead(base)()
    return loop


@cache
def fetching_ahead(base: Any) -> Any:
    """A kind of event loop, with what is different about ours."""
    return type(f"Ahead{base.__name__}", (_FetchingAhead, base), {})


class AheadServer(asyncio.AbstractServer):
    """What ``create_server`` answers: accepts by itself, and hands each connection to its handshake when it is time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        protocol_factory: ProtocolFactory,
        context: ssl.SSLContext,
        shared: SharedSessions,
        *,
        backlog: int,
        handshake_timeout_s: float,
        shutdown_timeout_s: float | None,
        given: socket.socket | None = None,
    ) -> None:
        """``given``: the caller's socket that the listener was made of; closed with it, as any loop does."""
        self._loop = loop
        self._listeners = listeners
        self._given = given
        self._protocol_factory = protocol_factory
        self._context = context
        self._shared = shared
        self._backlog = backlog
        self._handshake_timeout_s = handshake_timeout_s
        self._options: dict[str, Any] = {}
        if shutdown_timeout_s is not None:
            self._options["ssl_shutdown_timeout"] = shutdown_timeout_s
        self._turnstile = Turnstile(loop)
        self._started = False
        self._accepting: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._closed = loop.create_future()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return bool(self._accepting)

    async def start_serving(self) -> None:
        if self._started or self._closed.done():
            return
        self._started = True
        await self._shared.open_here()
        for listener in self._listeners:
            listener.listen(self._backlog)
            self._accepting.append(self._loop.create_task(self._accept(listener)))

    async def serve_forever(self) -> None:
        await self.start_serving()
        try:
            await asyncio.shield(self._closed)
        finally:
            self.close()

    def close(self) -> None:
        """Accept no more. Connections go on, also those whose handshake is under way."""
        accepting, self._accepting = self._accepting, []
        for task in accepting:
            task.cancel()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._loop.remove_reader(listener)
            listener.close()
        if self._given is not None:
            self._given.close()
        if not self._closed.done():
            self._closed.set_result(None)
            if self._started:
                self._ending = self._loop.create_task(self._end())

    def close_clients(self) -> None:
        """Give up the connections whose handshake is under way; the others are their protocols'."""
        for task in list(self._greeting):
            task.cancel()

    abort_clients = close_clients

    async def wait_closed(self) -> None:
        await asyncio.shield(self._closed)
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            if self._greeting:
                await asyncio.wait(set(self._greeting))
        finally:
            await self._shared.close_here()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except (ConnectionAbortedError, InterruptedError):
                continue
            except OSError as shortage:
                # Without a descriptor, accepting again at once would be a loop without an end.
                _seldom.warning("no connection can be accepted: %s", shortage.strerror)
                await asyncio.sleep(SHORTAGE_PAUSE_S)
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._greet(connection))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        looked_for = LookedFor()
        try:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._greeting) <= MAX_PEEKING:
                async with asyncio.timeout(min(HELLO_TIMEOUT_S, self._handshake_timeout_s)):
                    hello = await peek_hello(self._loop, connection)
                if isinstance(hello, ClientHello):
                    looked_for = await self._shared.fetch_ahead(hello)
            await self._turnstile.turn()
            await self._loop.connect_accepted_socket(
                self._protocol_factory,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                **self._options,
            )
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            _seldom.write(logging.INFO, "a TLS handshake failed: %s", error, kind="handshake")
        except BaseException:
            connection.close()
            raise
        finally:
            self._shared.forget(looked_for)
