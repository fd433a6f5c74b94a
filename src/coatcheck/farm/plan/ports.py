"""Where the processes of a farm listen: the public port, and the internal links that a farm keeps over restarts.

Internal links are Unix sockets in a private directory, or ports of the loopback interface.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path
from typing import Final, Protocol

from coatcheck.errors import ConfigError
from coatcheck.farm.plan.roles import LOOPBACK, Address
from coatcheck.host_port import format_host_port

_INTERNAL: Final = range(15_000, 30_000)
"""Below what Linux gives to outgoing connections, so that none of those takes the port of a dead process."""

_TRIES: Final = 200

BACKLOG: Final = 1024
"""Connections that wait to be accepted by one process of the farm."""

SOCKET_SUFFIX: Final = ".sock"
FRESH_SUFFIX: Final = ".new"
"""Behind the name of a Unix socket that is not in its place yet."""


PUBLIC_BACKLOG: Final = 4096
"""Connections that wait to be accepted by a director; the system may allow fewer (``net.core.somaxconn``)."""


def listen_on_public_address(host: str, port: int) -> tuple[socket.socket, Address]:
    """Listen on the farm's address, for its directors, which inherit the socket; nobody else can listen there.

    It outlives them: who connects while one is dead waits in the kernel's queue until another one, or its successor,
    accepts. One queue for all, so that no connection waits for a dead worker while others live, and a busy worker
    takes fewer than an idle one.

    Raises:
        ConfigError: the port is in use or not allowed, or the host is none of ours.
    """
    try:
        family, *_, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            # The port may have been ours a moment ago, with connections of then in TIME_WAIT.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(PUBLIC_BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except socket.gaierror as error:
        raise ConfigError(f"host: {host!r} is no address of this machine ({error.strerror})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            mend = "stop what uses it, or choose another --port (0: any free one)"
            raise ConfigError(f"port: {port} on {host} is in use; {mend}") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"port: {port} needs privileges; choose one from 1024 on") from None
        raise ConfigError(f"host: cannot listen on {format_host_port(host, port)}: {error.strerror}") from None
    bound = listener.getsockname()
    return listener, Address(host, bound[1])


class InternalAddresses(Protocol):
    """Gives each process of a farm the address that it keeps over its restarts."""

    def take(self, name: str) -> Address:
        """A free address for the process of this name; raises ConfigError if there is none."""
        ...

    def close(self) -> None:
        """Give all of them up."""
        ...


class InternalSockets:
    """Unix sockets in a private directory: only the farm's own user can reach them, or put others in their place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, name: str) -> Address:
        """The socket's path, for the process of this name."""
        return Address(path=str(self._directory / (name + SOCKET_SUFFIX)))

    def close(self) -> None:
        """The sockets go with their directory."""


class InternalPorts:
    """Loopback addresses for the processes of one farm, held until :meth:`close`, so that nobody else takes them.

    A held port is bound and does not listen: whoever connects is refused. It is bound with SO_REUSEPORT alone, so that
    processes of our user may bind it too (socket(7)), and no other user's, with whichever option.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, name: str) -> Address:
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
    # Without an option a bind fails wherever anybody is bound already, another farm's hold among them.
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        return None
    return held


def listen(address: Address, backlog: int = BACKLOG) -> socket.socket:
    """A listening socket for a process of the farm; it takes over the address of its dead predecessor.

    The file of a Unix socket is replaced in one step: whoever connects reaches the old one or the new one.
    """
    sock = socket.socket(socket.AF_UNIX) if address.path else socket.socket()
    try:
        if address.path:
            fresh = address.path + FRESH_SUFFIX
            Path(fresh).unlink(missing_ok=True)
            sock.bind(fresh)
            sock.listen(backlog)
            move_into_place(address)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((address.host, address.port))
            sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def move_into_place(address: Address) -> None:
    """Put the Unix socket that listens under its fresh name in the place of its predecessor."""
    fresh = Path(address.path + FRESH_SUFFIX)
    fresh.chmod(0o600)
    fresh.replace(address.path)
