"""Where TLS connections come in: each counts from its first moment, and has only so long for its handshake."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Final

from coatcheck.director.io.client_link import ClientLink
from coatcheck.director.io.relay import OWN_SHORTAGES, Relay
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.faults import Fault

_log: Final = logging.getLogger("coatcheck.director")
_AT_ONCE: Final = 64
"""Connections that are accepted in one round of the event loop."""
_SHORTAGE_PAUSE_S: Final = 0.1


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
        relay.traffic.begin_handshake(sock)
        relay.flush()
        try:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await relay.loop.connect_accepted_socket(
                lambda: ClientLink(relay, guest),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=relay.options.tls_handshake_timeout_s,
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
        finally:
            relay.traffic.end_handshake(sock)
