"""Stores of items on the other side of a connection, for threads.

A thread in the middle of a TLS handshake asks by itself: handing its question to an event loop in another thread costs
six times the CPU of the question. What is handed over is sent, and its answer read when the connection is next used.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast

import hiredis

from coatcheck import resp
from coatcheck.peers.credentials import check_same_user
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.greeting import HandshakeRefused, Steps, greet
from coatcheck.stores.take_once.requests import ItemRequests, as_flag, as_item, knows_no_script
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import check_key, check_nonce, check_put

T = TypeVar("T")

MAX_IDLE: Final = 32
"""Connections that are kept for the next thread; those of a greater crowd are closed after their use."""
MAX_UNREAD: Final = 64
"""Answers that may wait to be read on one connection; then they are waited for."""
MAX_REPLY_BYTES: Final = 64 * 1024
_PIECE: Final = 16 * 1024
_PING: Final = resp.command(b"PING")
_NOT_YET: Final = object()


class BlockingItems:
    """See :class:`coatcheck.take_once.port.TakeOnceForThreads`.

    ``make_requests``: of each connection its own, for what a server says of itself holds for one connection only.
    """

    def __init__(self, name: str, address: StoreAddress, make_requests: Callable[[], ItemRequests]) -> None:
        self.name = name
        self._address = address
        self._make_requests = make_requests
        self._idle: deque[_Line] = deque()
        self._counting = threading.Lock()
        self._refused = 0

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        check_put(key, item, life_ms, after)
        return as_flag(self._ask(lambda requests: requests.put(key, item, life_ms, after), limit_s), self.name)

    def hand_over(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> None:
        check_put(key, item, life_ms, after)
        until = time.monotonic() + limit_s
        with self._line(until) as line:
            line.send(line.requests.put(key, item, life_ms, after), until)
            if line.unread >= MAX_UNREAD:
                line.read_all(until)

    def take(self, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        return as_item(self._ask(lambda requests: requests.take(key, nonce), limit_s), self.name)

    def purge(self, key: bytes, limit_s: float) -> bool:
        check_key(key)
        return as_flag(self._ask(lambda requests: requests.purge(key), limit_s), self.name)

    def check(self, limit_s: float) -> bool:
        with contextlib.suppress(TakeOnceUnavailable):
            return not isinstance(self._ask(lambda requests: _PING, limit_s), hiredis.ReplyError)
        return False

    def settle(self) -> tuple[int, int]:
        unread = 0
        for _ in range(len(self._idle)):
            with contextlib.suppress(IndexError):
                line = self._idle.popleft()
                try:
                    line.read_what_is_there()
                except (OSError, hiredis.ProtocolError):
                    self._end(line)
                    continue
                unread += line.unread
                self._give_back(line)
        return unread, self._refused

    def close(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def _ask(self, make: Callable[[ItemRequests], bytes], limit_s: float) -> Any:
        until = time.monotonic() + limit_s
        with self._line(until) as line:
            reply = line.ask(make(line.requests), until)
            if knows_no_script(reply):
                line.take_steps(line.requests.prepare(), until)
                reply = line.ask(make(line.requests), until)
            return reply

    @contextlib.contextmanager
    def _line(self, until: float) -> Iterator[_Line]:
        """A connection for this thread alone; it is kept unless anything went wrong on it."""
        line = self._idle_line()
        try:
            if line is None:
                line = _Line(self._address, self._make_requests(), until)
            yield line
        except (OSError, HandshakeRefused, hiredis.ProtocolError) as wrong:
            if line is not None:
                self._end(line)
            said = f"no answer in time from {self._address}" if isinstance(wrong, TimeoutError) else wrong
            raise TakeOnceUnavailable(f"{self.name}: {said}") from None
        except BaseException:
            if line is not None:
                line.close()
            raise
        self._give_back(line)

    def _idle_line(self) -> _Line | None:
        """The one that was used last. One that the server has closed meanwhile is no answer of the server."""
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return None
            try:
                line.read_what_is_there()
                return line
            except (OSError, hiredis.ProtocolError):
                self._end(line)

    def _end(self, line: _Line) -> None:
        """What it carried last may not have been stored."""
        line.refused += line.unread
        line.unread = 0
        self._count(line)
        line.close()

    def _count(self, line: _Line) -> None:
        if line.refused:
            with self._counting:
                self._refused += line.refused
            line.refused = 0

    def _give_back(self, line: _Line) -> None:
        self._count(line)
        if len(self._idle) < MAX_IDLE:
            self._idle.append(line)
        else:
            line.close()


class _Line:
    """A connection, and the answers that are still on their way there. Whatever fails, it is not used again."""

    def __init__(self, address: StoreAddress, requests: ItemRequests, until: float) -> None:
        self.requests = requests
        self.unread = 0
        """Answers to what was handed over."""
        self.refused = 0
        """Such answers that were no yes, and have not been counted yet."""
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._sock = _dial(address, until)
        try:
            self.take_steps(greet(address), until)
            self.take_steps(requests.prepare(), until)
        except BaseException:
            self.close()
            raise

    def send(self, request: bytes, until: float) -> None:
        """Send what nobody waits for."""
        self._send(request, until)
        self.unread += 1

    def ask(self, request: bytes, until: float) -> Any:
        """Send, and wait for the answer."""
        self._send(request, until)
        self.read_all(until)
        while True:
            reply = self._next(until)
            if reply is not _NOT_YET:
                return reply

    def take_steps(self, steps: Steps[T], until: float) -> T:
        """Go through a handshake."""
        try:
            request = next(steps)
            while True:
                reply = self.ask(request, until)
                if isinstance(reply, hiredis.ReplyError):
                    raise HandshakeRefused(str(reply))
                request = steps.send(reply)
        except StopIteration as done:
            return cast("T", done.value)

    def read_all(self, until: float) -> None:
        """Wait for all answers to what was handed over."""
        while self.unread:
            self._count(self._next(until))

    def read_what_is_there(self) -> None:
        """The same without waiting. Raises ``OSError`` if the connection has ended."""
        while True:
            reply = self._reader.gets()
            if reply is not _NOT_YET:
                if not self.unread:
                    raise ConnectionError("the server said something that nobody asked")
                self._count(reply)
                continue
            self._sock.settimeout(0)
            try:
                self._feed(self._sock.recv(_PIECE))
            except (BlockingIOError, ssl.SSLWantReadError):
                return

    def close(self) -> None:
        self._sock.close()

    def _count(self, reply: Any) -> None:
        if reply is _NOT_YET:
            return
        self.unread -= 1
        self.refused += reply != 1
        if isinstance(reply, hiredis.ReplyError):
            raise ConnectionError(str(reply))  # what the server has forgotten, or become, a new connection asks anew

    def _send(self, request: bytes, until: float) -> None:
        self._sock.settimeout(_left(until))
        self._sock.sendall(request)

    def _next(self, until: float) -> Any:
        reply = self._reader.gets()
        if reply is _NOT_YET:
            self._sock.settimeout(_left(until))
            self._feed(self._sock.recv(_PIECE))
            reply = self._reader.gets()
        return reply

    def _feed(self, data: bytes) -> None:
        if not data:
            raise ConnectionError("the server closed the connection")
        if self._reader.len() > MAX_REPLY_BYTES:
            raise ConnectionError("a reply that is too long")
        self._reader.feed(data)


def _dial(address: StoreAddress, until: float) -> socket.socket:
    if address.path:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.create_connection((address.host, address.port), _left(until))
    try:
        if address.path:
            sock.settimeout(_left(until))
            sock.connect(address.path)
            if address.ours:
                check_same_user(sock)
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.tls is None:
            return sock
        sock.settimeout(_left(until))
        return address.tls.wrap_socket(sock, server_hostname=address.tls_name or address.host)
    except BaseException:
        sock.close()
        raise


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
