"""Ports: the public one that must be free, and internal ones that a farm keeps over restarts."""

from __future__ import annotations

import errno
import random
import socket
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.farm.roles import LOOPBACK, Address

_INTERNAL: Final = range(15_000, 30_000)
"""Below what Linux gives to outgoing connections, so that none of those takes the port of a dead process."""

_TRIES: Final = 200


def hold_public_address(host: str, port: int) -> tuple[socket.socket, Address]:
    """Bind the director's address without listening; its workers share it by SO_REUSEPORT, nobody else can.

    Raises:
        ConfigError: the port is in use or not allowed, or the host is none of ours.
    """
    try:
        family, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # SO_REUSEPORT alone would share the port with another farm of ours: ask first without it.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen(1)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(target)
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            mend = "stop what uses it, or choose another --port (0: any free one)"
            raise ConfigError(f"port: {port} on {host} is in use; {mend}") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"port: {port} needs privileges; choose one from 1024 on") from None
        raise ConfigError(f"host: cannot listen on {host}:{port}: {error.strerror}") from None
    bound = held.getsockname()
    return held, Address(host, bound[1])


class InternalPorts:
    """Loopback addresses for the processes of one farm, held until :meth:`close`, so that no other farm takes them.

    A held port is bound and does not listen: whoever connects is refused, and a process of ours may bind it too.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> Address:
        """A free address.

        Raises:
            ConfigError: none was found.
        """
        for _ in range(_TRIES):
            port = random.choice(_INTERNAL)
            if (sock := _hold(port)) is not None:
                self._held.append(sock)
                return Address(LOOPBACK, port)
        raise ConfigError(f"no free port found between {_INTERNAL.start} and {_INTERNAL.stop}")

    def close(self) -> None:
        """Give all of them up."""
        while self._held:
            self._held.pop().close()


def _hold(port: int) -> socket.socket | None:
    # Without SO_REUSEADDR a bind fails wherever anybody is bound already, another farm's hold among them.
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        return None
    return held


def listen(address: Address, backlog: int = 1024) -> socket.socket:
    """A listening socket for a process of the farm; it may take over the address of its dead predecessor."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address.host, address.port))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock
