"""One connection of a stand-in on a socket: what ``ssl.SSLSocket`` calls in the C module, for threaded servers."""

from __future__ import annotations

import contextlib
import ctypes
import math
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from coatcheck.tls.stand_in.connection import StandInConnection
from coatcheck.tls.stand_in.errors import say

MAX_WRITE_BYTES: Final = 256 * 1024
"""So much is taken at once; who has more is told so, and calls again."""

_Answer = TypeVar("_Answer")


class _SocketCall:
    """One call of the user's: its socket, and how long it may take, all in all, as ``ssl`` counts it."""

    def __init__(self, sock: socket.socket, what: str) -> None:
        self._sock = sock
        self._what = what
        timeout_s = sock.gettimeout()
        self._until = time.monotonic() + timeout_s if timeout_s else None

    def receive(self, most: int) -> bytes:
        """Raises ``BlockingIOError``, ``TimeoutError`` and what the socket raises."""
        self._wait(select.POLLIN)
        return socket.socket.recv(self._sock, most)

    def send(self, data: memoryview, patient: bool) -> int:
        """As :meth:`receive`; without patience, as much as there is room for, and ``BlockingIOError`` for none."""
        if patient:
            self._wait(select.POLLOUT)
            return socket.socket.send(self._sock, data)
        poller = select.poll()
        poller.register(self._sock, select.POLLOUT)
        if not poller.poll(0):
            raise BlockingIOError
        return socket.socket.send(self._sock, data, socket.MSG_DONTWAIT)

    def _wait(self, event: int) -> None:
        if self._until is None:
            return  # it waits for ever, or not at all: the socket knows
        poller = select.poll()
        poller.register(self._sock, event)
        left_s = self._until - time.monotonic()
        if left_s <= 0 or not poller.poll(math.ceil(left_s * 1000)):
            raise TimeoutError(f"The {self._what} operation timed out")


class SocketConnection(StandInConnection):
    """A connection that moves its bytes over a socket by itself.

    One thread may read while another one writes; neither waits for the other.
    """

    def __init__(self, context: ssl.SSLContext, library: ctypes.CDLL, pointer: int, sock: socket.socket) -> None:
        super().__init__(context, library, pointer, ssl.MemoryBIO(), ssl.MemoryBIO())
        self._sock = weakref.ref(sock)
        self._receiving, self._sending, self._writing = threading.Lock(), threading.Lock(), threading.Lock()
        self._receipts = 0
        self._unsent = memoryview(b"")
        self._taken = 0
        """Bytes of a write that libssl has taken, but the socket has not yet: the same write is to be called again."""

    def do_handshake(self) -> None:
        call = self._begin("handshake")
        self._drive(call, super().do_handshake)
        self._send(call)

    def read(self, length: int, buffer: Any = None) -> Any:
        call, inner = self._begin("read"), super().read
        got = self._drive(call, lambda: inner(length, buffer), reads=True)
        with contextlib.suppress(OSError):  # what was read is not lost; if the socket is broken, the next call meets it
            self._send_what_goes(call)
        return got

    def write(self, data: Any) -> int:
        with self._writing:
            call, inner = self._begin("write"), super().write
            given = memoryview(data).cast("B")
            if self._taken > len(given):
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, "[SSL: BAD_WRITE_RETRY] bad write retry")
            if not self._taken:
                self._taken = self._drive(call, lambda: inner(given[:MAX_WRITE_BYTES]))
            self._send(call)
            taken, self._taken = self._taken, 0
            return taken

    def shutdown(self) -> Any:
        call = self._begin("read")
        self._drive(call, super().shutdown)
        self._send(call)
        return self._sock()

    def _begin(self, what: str) -> _SocketCall:
        sock = self._sock()
        if sock is None or sock.fileno() < 0:
            raise ssl.SSLError(0, "Underlying socket connection gone")
        return _SocketCall(sock, what)

    def _drive(self, call: _SocketCall, step: Callable[[], _Answer], reads: bool = False) -> _Answer:
        """Step until it is done, with as much from the socket as that takes.

        Who reads does not wait until others' words are sent: they may wait for a peer who sends on until he is read.
        """
        while True:
            seen = self._receipts
            try:
                return step()
            except ssl.SSLWantReadError:
                if reads and self.version() is not None:
                    # A peer that has gone may have said something before; who sends finds out.
                    with contextlib.suppress(OSError):
                        self._send_what_goes(call)
                else:
                    self._send(call)
                self._receive(call, seen)
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert: the peer is told why, if it can be
                    self._send_what_goes(call)
                raise

    def _receive(self, call: _SocketCall, seen: int) -> None:
        with self._receiving:
            if self._receipts != seen:
                return  # another thread has, meanwhile
            try:
                data = call.receive(self._record.missing)  # all that came before has been taken in
            except BlockingIOError:
                raise say(ssl.SSL_ERROR_WANT_READ) from None
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            self._receipts += 1

    def _send(self, call: _SocketCall) -> None:
        """All that is to be sent, in its order."""
        with self._sending:
            try:
                self._empty(call, patient=True)
            except BlockingIOError:
                raise say(ssl.SSL_ERROR_WANT_WRITE) from None

    def _send_what_goes(self, call: _SocketCall) -> None:
        """As much of it as goes without waiting; the rest goes with the next call."""
        if self._sending.acquire(blocking=False):  # else another thread is at it
            try:
                with contextlib.suppress(BlockingIOError):
                    self._empty(call, patient=False)
            finally:
                self._sending.release()

    def _empty(self, call: _SocketCall, patient: bool) -> None:
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent = memoryview(self._outgoing.read())
            self._unsent = self._unsent[call.send(self._unsent, patient) :]
