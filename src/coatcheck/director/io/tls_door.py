"""Where TLS connections come in: each counts from its first moment, and has only so long for its handshake."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from coatcheck.director.io.acceptor import Acceptor, let_in
from coatcheck.director.io.client_link import ClientLink
from coatcheck.director.io.relay import Relay
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.faults import Fault
from coatcheck.director.rules.routing import ServerState

_UNREAD_BYTES: Final = 16 * 1024
"""With fewer the kernel calls a connection unreadable until its handshake begins."""

_SHORTEST_S: Final = 0.001
"""What is left for the handshake of a client whose time is over: asyncio takes no zero."""


class _Unread(asyncio.Protocol):
    """Who has a connection until its handshake begins, which is to read the first byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        # More than any hello: its beginning is gone.
        self._transport.abort()


class _Handshake(asyncio.Protocol):
    """Who has a connection during its handshake: what the client says right behind it must not be lost."""

    def __init__(self) -> None:
        self._link: ClientLink | None = None
        self._untold: list[Callable[[ClientLink], object]] = []

    def is_done(self, transport: asyncio.Transport, link: ClientLink) -> None:
        """The client is let in."""
        self._link = link
        transport.set_protocol(link)
        link.connection_made(transport)
        for event in self._untold:
            event(link)

    def data_received(self, data: bytes) -> None:
        self._tell(lambda link: link.data_received(data))

    def eof_received(self) -> None:
        self._tell(ClientLink.eof_received)

    def connection_lost(self, error: Exception | None) -> None:
        self._tell(lambda link: link.connection_lost(error))

    def _tell(self, event: Callable[[ClientLink], object]) -> None:
        if self._link is None:
            self._untold.append(event)
        else:
            event(self._link)


class TlsDoor:
    """Accepts on a listening socket and lets in who has spoken TLS.

    Not asyncio's own server: that one tells of a connection only after its handshake.
    """

    def __init__(self, relay: Relay, listener: socket.socket, context: ssl.SSLContext) -> None:
        self._relay = relay
        self._context = context
        self._acceptor = Acceptor(relay, listener, self._take)
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to accept."""
        self._acceptor.open()

    def close(self) -> None:
        """Accept no more; handshakes that are under way end by themselves, or by their time-out."""
        self._acceptor.close()

    def abort(self) -> None:
        """End the handshakes that are under way."""
        for task in self._tasks:
            task.cancel()

    def draining(self, server: ServerState) -> None:
        """Nothing: a connection here is of no web server between its requests."""

    def status(self) -> dict[str, int]:
        """Nothing that the traffic does not count."""
        return {}

    def _take(self, sock: socket.socket, peer: str) -> None:
        relay = self._relay
        guest = let_in(relay, sock, peer)
        if guest is None:
            return
        task = relay.loop.create_task(self._shake_hands(sock, guest, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, sock: socket.socket, guest: Guest, peer: str) -> None:
        relay = self._relay
        loop = relay.loop
        relay.traffic.begin_handshake(sock)
        relay.flush()
        ends_at = loop.time() + relay.options.tls_handshake_timeout_s
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with contextlib.AsyncExitStack() as around:
                if relay.options.around_handshake is not None:
                    async with asyncio.timeout_at(ends_at):
                        await around.enter_async_context(relay.options.around_handshake(sock))
                # In two steps, so that we have the transport beneath, too: it knows what has not left yet. uvloop reads
                # from a new connection even if that is paused, hence the low-water mark.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _UNREAD_BYTES)
                beneath, _ = await loop.connect_accepted_socket(_Unread, sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                handshake = _Handshake()
                transport = await loop.start_tls(
                    beneath,
                    handshake,
                    self._context,
                    server_side=True,
                    ssl_handshake_timeout=max(ends_at - loop.time(), _SHORTEST_S),
                )
        except (OSError, ssl.CertificateError) as error:
            guest.leave()
            sock.close()
            relay.traffic.count(Fault.HANDSHAKE_FAILED)
            relay.seldom.write(logging.INFO, "a TLS handshake failed: %s", error, kind="handshake")
        except BaseException:
            guest.leave()
            sock.close()
            raise
        else:
            assert transport is not None
            handshake.is_done(transport, ClientLink(relay, guest, beneath))
        finally:
            relay.traffic.end_handshake(sock)
