"""Where TLS connections come in: each counts from its first moment, and has only so long for its handshake."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from coatcheck.director.io.client_link import ClientLink
from coatcheck.director.io.relay import OWN_SHORTAGES, Relay
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.faults import Fault

_log: Final = logging.getLogger("coatcheck.director")
_AT_ONCE: Final = 64
"""Connections that are accepted in one round of the event loop."""
_SHORTAGE_PAUSE_S: Final = 0.1
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
        self._listener = listener
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._shortage: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to accept."""
        self._relay.loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more; handshakes that are under way end by themselves, or by their time-out."""
        if self._shortage is not None:
            self._shortage.cancel()
        self._relay.loop.remove_reader(self._listener)
        self._listener.close()

    def abort(self) -> None:
        """End the handshakes that are under way."""
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in OWN_SHORTAGES:
                    raise
                self._relay.seldom.warning("no connection can be accepted: %s", error.strerror)
                self._pause()
                return
            self._take(sock, peer[0] if isinstance(peer, tuple) else "unknown")

    def _pause(self) -> None:
        """Without a descriptor, accepting again at once would be a loop without an end."""
        relay = self._relay
        relay.loop.remove_reader(self._listener)
        relay.traffic.make_room()
        relay.flush()
        self._shortage = relay.loop.call_later(_SHORTAGE_PAUSE_S, self.open)

    def _take(self, sock: socket.socket, peer: str) -> None:
        relay, traffic = self._relay, self._relay.traffic
        guest = traffic.enter(peer)
        fault = traffic.too_many(guest)
        relay.flush()
        if fault is not None:
            # Before a handshake there is no way to say why, and to make one would be what an attacker wants.
            traffic.count(fault)
            guest.leave()
            sock.close()
            return
        sock.setblocking(False)
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
