"""Ports for the servers that tests start: no two test processes of a machine are given the same one.

A port that the kernel picked (bind to 0, close, start a server there) may be anybody's by the time the server listens:
a neighbour's, who asked too, or an outgoing connection's. So these ports are below those that Linux gives away by
itself, and each process takes them from a block that it holds for as long as it lives.
"""

from __future__ import annotations

import errno
import os
import socket

LOOPBACK = "127.0.0.1"
FIRST, LAST = 10_000, 14_999
"""Below a farm's internal ports (15,000 and up), which its supervisor draws by itself."""

BLOCK = 100
"""Ports in a block; the first one is bound to say that the block is taken."""


class PortBlocks:
    """The blocks of this process; another one is taken when all ports of one were handed out."""

    def __init__(self) -> None:
        self._guards: list[socket.socket] = []
        self._left: list[int] = []
        self._owner = 0

    def next(self) -> int:
        """A port that is free, and that no other test process will be given."""
        if self._owner != os.getpid():  # a forked process must not hand out its parent's
            self._owner, self._guards, self._left = os.getpid(), [], []
        while True:
            if not self._left:
                self._left = self._take_block()
            probe = _bound(port := self._left.pop())
            if probe is not None:
                probe.close()
                return port

    def _take_block(self) -> list[int]:
        blocks = range(FIRST, LAST - BLOCK + 2, BLOCK)
        for at in range(len(blocks)):
            first = blocks[(os.getpid() + at) % len(blocks)]
            guard = _bound(first)
            if guard is not None:
                self._guards.append(guard)
                return list(range(first + BLOCK - 1, first, -1))
        raise AssertionError(f"every block of ports between {FIRST} and {LAST} is taken")


def _bound(port: int) -> socket.socket | None:
    """A socket bound to the port; ``None`` if somebody has it."""
    probe = socket.socket()
    try:
        probe.bind((LOOPBACK, port))
    except OSError as error:
        probe.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return probe


_blocks = PortBlocks()


def free_port() -> int:
    """A port on loopback for a server that is about to start."""
    return _blocks.next()
