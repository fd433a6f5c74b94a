"""Accepts connections one by one, so that each counts from its first moment, before any handshake."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from coatcheck.director.io.relay import OWN_SHORTAGES, Relay
from coatcheck.director.rules.admission import Guest

_AT_ONCE: Final = 64
"""Connections that are accepted in one round of the event loop."""
_SHORTAGE_PAUSE_S: Final = 0.1


class Acceptor:
    """Accepts on a listening socket and hands each connection on, with its client's address."""

    def __init__(self, relay: Relay, listener: socket.socket, take: Callable[[socket.socket, str], None]) -> None:
        self._relay = relay
        self._listener = listener
        self._take = take
        self._shortage: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to accept."""
        self._relay.loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept no more."""
        if self._shortage is not None:
            self._shortage.cancel()
        self._relay.loop.remove_reader(self._listener)
        self._listener.close()

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


def let_in(relay: Relay, sock: socket.socket, peer: str) -> Guest | None:
    """Count a connection that was just accepted; ``None``: it was one too many, and is closed.

    Before a handshake there is no way to say why, and to make one would be what an attacker wants.
    """
    traffic = relay.traffic
    guest = traffic.enter(peer)
    fault = traffic.too_many(guest)
    relay.flush()
    if fault is not None:
        traffic.count(fault)
        guest.leave()
        sock.close()
        return None
    sock.setblocking(False)
    return guest
