"""Simulated sockets: what asyncio asks of ``socket.socket``, and the part of a kernel that stands behind it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from coatcheck.simulation.world.takeover import turn
from coatcheck.simulation.world.wire import Wire

Address = tuple[str, int] | str
"""An IP address and a port, or the path of a Unix socket."""

WINDOW_BYTES: Final = 256 * 1024
"""What may be under way or unread on a connection, in each direction."""
ROOM_BYTES: Final = WINDOW_BYTES // 2
"""A sender that had to wait goes on when so much may be sent at once."""
MAX_BACKLOG: Final = 512
FIRST_PORT: Final = 49152
AF_INET, AF_UNIX = socket.AF_INET, socket.AF_UNIX


class Hosts:
    """The hosts of a world by their IP addresses, and who listens where."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._names: dict[str, str] = {}
        self.listeners: dict[Address, SimulatedSocket] = {}
        self.without_power: set[str] = set()
        """Hosts that answer nothing at all."""

    def address_of(self, name: str) -> str:
        for address, known in self._names.items():
            if known == name:
                return address
        address = f"10.0.{len(self._names) // 250}.{len(self._names) % 250 + 1}"
        self._names[address] = name
        return address

    def name_of(self, address: str) -> str:
        return self._names.get(address, address)


class Kernel:
    """The sockets of one run of one process. ``wake``: its event loop may have something to read or to write."""

    def __init__(self, host: str, hosts: Hosts, wake: Callable[[], None]) -> None:
        self.host = host
        self.hosts = hosts
        self.wake = wake
        self.sockets: dict[int, SimulatedSocket] = {}
        self.hot: dict[int, None] = {}
        """Descriptors that may be ready."""
        self.alive = True
        self._next_fd = 10
        self._next_port = FIRST_PORT

    def open(self, sock: SimulatedSocket) -> int:
        self._next_fd += 1
        self.sockets[self._next_fd] = sock
        return self._next_fd

    def free_port(self) -> int:
        self._next_port += 1
        return self._next_port

    def end(self, silently: bool = False) -> None:
        """The process is gone: its kernel closes what it had open; not if the power has failed (``silently``)."""
        self.alive = False
        for sock in list(self.sockets.values()):
            sock.abandon() if silently else sock.close()


class SimulatedSocket:
    """A non-blocking stream socket of the machine whose turn it is."""

    def __init__(
        self,
        family: int = AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket calls it
        proto: int = 0,
        fileno: int | None = None,
    ) -> None:
        if family not in (AF_INET, AF_UNIX) or not type & socket.SOCK_STREAM or fileno is not None:
            raise OSError(errno.EAFNOSUPPORT, "a simulated socket is a stream over IPv4 or Unix")
        self._open(turn.clocks().kernel, family, proto)

    def _open(self, kernel: Kernel, family: int, proto: int) -> None:
        self.family, self.type, self.proto = family, socket.SOCK_STREAM, proto
        self._kernel = kernel
        self.host = kernel.host
        self._fd = kernel.open(self)
        self._name: Address = "" if family == AF_UNIX else ("0.0.0.0", 0)
        self._peer_name: Address = self._name
        self.peer: SimulatedSocket | None = None
        self.is_silent = False
        self.clear_at = 0.0
        self.held: list[tuple[str, bytes]] = []
        self._backlog: list[SimulatedSocket] | None = None
        self._connecting = False
        self._connected = False
        self._error = 0
        self._unread = bytearray()
        self._under_way = 0
        self._wants_room = False
        self._ended = False
        self._shut = False
        self._resets = False
        """Whether closing it resets the connection, as ``SO_LINGER`` can ask for."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<simulated socket {self._fd} of {self.host}, {self._name} to {self._peer_name}>"

    def __enter__(self) -> SimulatedSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what asyncio asks -------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self._closed else self._fd

    def setblocking(self, blocking: bool) -> None:
        if blocking:
            raise ValueError("a simulated socket never blocks")

    def gettimeout(self) -> float:
        return 0.0

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Other options change nothing here."""
        if level == socket.SOL_SOCKET and option == socket.SO_LINGER:
            self._resets = struct.unpack("ii", value) == (1, 0)

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if level == socket.SOL_SOCKET and option == socket.SO_ERROR:
            error, self._error = self._error, 0
            return error
        if level == socket.SOL_SOCKET and option == getattr(socket, "SO_PEERCRED", -1):
            return struct.pack("3i", 1, os.geteuid(), os.getegid())
        return 0

    def getsockname(self) -> Address:
        return self._name

    def getpeername(self) -> Address:
        if not self._connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer_name

    def bind(self, address: Address) -> None:
        if not isinstance(address, str) and address[1] == 0:
            address = (address[0], self._kernel.free_port())
        if address in self._kernel.hosts.listeners:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self._name = address if isinstance(address, str) else (address[0], address[1])

    def listen(self, backlog: int = MAX_BACKLOG) -> None:
        self._backlog = []
        self._kernel.hosts.listeners[self._name] = self

    def accept(self) -> tuple[SimulatedSocket, Address]:
        if not self._backlog:
            raise BlockingIOError(errno.EAGAIN, "nobody waits")
        taken = self._backlog.pop(0)
        return taken, taken._peer_name

    def connect(self, address: Address) -> None:
        """Raises ``BlockingIOError`` over the wire: the outcome is in ``SO_ERROR`` when the socket is writable."""
        hosts = self._kernel.hosts
        if isinstance(address, str):
            listener = hosts.listeners.get(address)
            if listener is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            self._meet(listener, address)
            self._establish()
            return
        if self._connected:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        self._peer_name = (address[0], address[1])
        self._name = (hosts.address_of(self.host), self._kernel.free_port())
        self._connecting = True
        self.peer = _Door(hosts, self, self._peer_name)  # type: ignore[assignment]
        hosts.wire.send(self, "open")
        raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))

    def send(self, data: Any) -> int:
        if self._error:
            raise self._raise_error()
        if self._shut or self._closed:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if not self._connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        room = WINDOW_BYTES - self._under_way
        if room <= 0:
            self._wants_room = True
            raise BlockingIOError(errno.EAGAIN, "no room")
        piece = bytes(data[:room])
        self._under_way += len(piece)
        self._wants_room = len(piece) < len(data)
        self._kernel.hosts.wire.send(self, "data", piece)
        return len(piece)

    def recv(self, size: int) -> bytes:
        if self._unread:
            piece = bytes(self._unread[:size])
            del self._unread[:size]
            self._make_room(len(piece))
            return piece
        if self._error:
            raise self._raise_error()
        if self._ended:
            return b""
        raise BlockingIOError(errno.EAGAIN, "nothing to read")

    def recv_into(self, buffer: Any) -> int:
        piece = self.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def shutdown(self, how: int) -> None:
        if not self._connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if how in (socket.SHUT_WR, socket.SHUT_RDWR) and not self._shut:
            self._shut = True
            self._kernel.hosts.wire.send(self, "end")

    def close(self) -> None:
        """As the kernel does it: what was not read resets the connection, else the other end reads its end."""
        if self._closed:
            return
        self._leave()
        if self.peer is not None and (self._connected or self._connecting):
            if self._unread or self._error or self._resets:
                self._kernel.hosts.wire.send(self, "reset")
            elif not self._shut:
                self._kernel.hosts.wire.send(self, "end")
        for waiting in self._backlog or ():
            waiting.close()

    def abandon(self) -> None:
        """The power has failed: nobody is told."""
        self._leave()
        for waiting in self._backlog or ():
            waiting.abandon()

    def _leave(self) -> None:
        self._closed = True
        kernel = self._kernel
        kernel.sockets.pop(self._fd, None)
        kernel.hot.pop(self._fd, None)
        if self._backlog is not None and kernel.hosts.listeners.get(self._name) is self:
            del kernel.hosts.listeners[self._name]

    # -- what the selector asks --------------------------------------------------------------------

    @property
    def is_readable(self) -> bool:
        return bool(self._backlog or self._unread or self._ended or (self._error and not self._connecting))

    @property
    def is_writable(self) -> bool:
        if self._backlog is not None or self._connecting:
            return False
        return bool(self._error) or self._under_way <= WINDOW_BYTES - ROOM_BYTES

    # -- what the wire brings ----------------------------------------------------------------------

    def take(self, what: str, piece: bytes) -> None:
        if self._closed:
            if what in ("data", "accepted") and self.host not in self._kernel.hosts.without_power:
                self._kernel.hosts.wire.send(self, "reset")
            return
        if what == "data":
            self._unread += piece
        elif what == "end":
            self._ended = True
        elif what == "accepted":
            self._establish()
        elif what == "reset":
            self._error = errno.ECONNREFUSED if self._connecting else errno.EPIPE if self._ended else errno.ECONNRESET
            self._connecting = False
        self._heat()

    def _heat(self) -> None:
        self._kernel.hot[self._fd] = None
        self._kernel.wake()

    def _establish(self) -> None:
        self._connecting = False
        self._connected = True

    def _raise_error(self) -> OSError:
        error, self._error = self._error, 0
        self._ended = self._shut = True
        return OSError(error, os.strerror(error))

    def _make_room(self, size: int) -> None:
        """The other end may send more: it learns so over the wire, if it waits for that."""
        peer = self.peer
        if peer is not None:
            peer._under_way -= size
            if peer._wants_room and peer._under_way <= WINDOW_BYTES - ROOM_BYTES and not self._closed:
                self._kernel.hosts.wire.send(self, "room")

    def _meet(self, listener: SimulatedSocket, name: Address) -> SimulatedSocket:
        """The other end of this connection, waiting to be accepted."""
        met: SimulatedSocket = SimulatedSocket.__new__(type(self))
        met._open(listener._kernel, self.family, self.proto)
        met.peer, self.peer = self, met
        met._name, met._peer_name = name, self._name
        self._peer_name = name
        met._establish()
        assert listener._backlog is not None
        listener._backlog.append(met)
        listener._heat()
        return met


class SimulatedPoll:
    """``select.poll``, for one look at sockets of the machine whose turn it is."""

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        self._asked[fd] = events

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Raises ``ValueError`` if it is to wait."""
        if timeout:
            raise ValueError("a simulated poll never waits")
        sockets = turn.clocks().kernel.sockets
        found = []
        for fd, events in self._asked.items():
            sock = sockets[fd]
            ready = select.POLLIN if sock.is_readable else 0
            ready |= select.POLLRDHUP if sock._ended or sock._error else 0
            if ready & events:
                found.append((fd, ready & events))
        return found


class _Door:
    """Where a connection is asked for: who listens there is seen when the request arrives."""

    def __init__(self, hosts: Hosts, caller: SimulatedSocket, address: tuple[str, int]) -> None:
        self._hosts = hosts
        self._caller = caller
        self._address = address
        self.host = hosts.name_of(address[0])
        self.peer = caller
        self.is_silent = False
        self.clear_at = 0.0
        self.held: list[tuple[str, bytes]] = []

    def take(self, what: str, piece: bytes) -> None:
        caller = self._caller
        if what != "open":
            return
        listener = self._hosts.listeners.get(self._address) or self._hosts.listeners.get(("0.0.0.0", self._address[1]))
        if listener is None or listener._backlog is None or len(listener._backlog) >= MAX_BACKLOG:
            if self.host not in self._hosts.without_power:
                self._hosts.wire.send(self, "reset")
            return
        if not caller._closed:
            met = caller._meet(listener, self._address)
            self._hosts.wire.send(met, "accepted")
