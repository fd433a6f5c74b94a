"""Connecting to a server of the own farm: nothing is sent before it is known who listens there."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from coatcheck.errors import ForeignPeer
from coatcheck.peers.credentials import check_same_user
from coatcheck.peers.preamble import MAX_LINE_BYTES, ClientPreamble

P = TypeVar("P", bound=asyncio.Protocol)

_BACKLOG_FULL_POLL_S: Final = 0.002


class Door(msgspec.Struct, frozen=True):
    """Where a server of the farm listens: a Unix socket of our own user, or a TCP address.

    With a ``credential`` both ends of a TCP connection prove that they know it; without one there is no proof,
    and whoever holds the port is believed.
    """

    name: str
    path: str = ""
    host: str = ""
    port: int = 0
    credential: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"Door({self.name!r}, {self})"


async def open_connection(door: Door, protocol: Callable[[], P]) -> P:
    """Connect to a server of the farm; answers the protocol once its connection is made. As :func:`dial`."""
    loop = asyncio.get_running_loop()
    sock = await dial(door)
    try:
        connect = loop.create_unix_connection if door.path else loop.create_connection
        _, made = await connect(protocol, sock=sock)
    except BaseException:
        sock.close()
        raise
    return made


async def open_streams(door: Door, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a server of the farm, for streams whose lines have ``limit`` bytes at most. As :func:`dial`."""
    sock = await dial(door)
    try:
        connect = asyncio.open_unix_connection if door.path else asyncio.open_connection
        return await connect(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise


async def dial(door: Door) -> socket.socket:
    """A connected, non-blocking socket to the server of that name, and to nobody else.

    The caller bounds the time. Raises ``OSError`` if nobody listens, :class:`ForeignPeer` if it is somebody else.
    """
    loop = asyncio.get_running_loop()
    if door.path:
        sock = await connect_unix(door.path)
        return _checked(sock)
    found = await loop.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if door.credential:
            await _prove(loop, sock, door)
    except BaseException:
        sock.close()
        raise
    return sock


async def connect_unix(path: str) -> socket.socket:
    """A connected, non-blocking Unix socket; waits while the listener's queue is full (the caller bounds the time).

    Raises ``OSError`` if nobody listens.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                # Unlike with TCP this does not mean "under way" but "the queue is full": connect(2), EAGAIN.
                await asyncio.sleep(_BACKLOG_FULL_POLL_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise


def _checked(sock: socket.socket) -> socket.socket:
    try:
        check_same_user(sock)
    except ForeignPeer:
        sock.close()
        raise
    return sock


async def _prove(loop: asyncio.AbstractEventLoop, sock: socket.socket, door: Door) -> None:
    preamble = ClientPreamble(door.credential, door.name, os.urandom)
    await loop.sock_sendall(sock, preamble.greeting)
    line = b""
    while not line.endswith(b"\n"):
        piece = await loop.sock_recv(sock, MAX_LINE_BYTES - len(line))
        if not piece:
            raise ForeignPeer(f"{door.name} at {door} ended the connection instead of proving that it is of this farm")
        line += piece
        if len(line) >= MAX_LINE_BYTES:
            raise ForeignPeer(f"what listens at {door} did not prove that it is {door.name} of this farm")
    await loop.sock_sendall(sock, preamble.answer(line))
