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
from coatcheck.stores.take_once.requests import ItemRequests, as_agreement, as_flag, as_item, must_prepare
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import NOTHING, check_agreement, check_key, check_nonce, check_put

T = TypeVar("T")

MAX_IDLE: Final = 32
"""Connections that are kept for the next thread; those of a greater crowd are closed after their use."""
MAX_IDLE_S: Final = 15.0
"""One that was not used for so long may have been cut without a sound: it is not used again."""
MAX_DIALING: Final = 4
"""Connections that are being made at a time; who needs one waits for the next that is free."""
CONNECT_LIMIT_S: Final = 2.0
"""So long a connection may take to be made, whoever waits for it: longer than one handshake may."""
MAX_LATE: Final = 8
"""Connections whose answer came too late for who asked, and which are used again when it is there."""
MAX_UNREAD: Final = 64
"""Answers that may wait to be read on one connection; then they are waited for."""
MAX_REPLY_BYTES: Final = 64 * 1024
_PIECE: Final = 16 * 1024
_PING: Final = resp.command(b"PING")
_NOT_YET: Final = object()
_OVER: Final = ("READONLY", "LOADING", "NOAUTH", "MASTERDOWN")
_BROKEN: Final = (OSError, HandshakeRefused, hiredis.ProtocolError)


class BlockingItems:
    """See :class:`coatcheck.take_once.port.TakeOnceForThreads`.

    ``make_requests``: of each connection its own, for what a server says of itself holds for one connection only.
    Connections are made by threads of their own: looking up a name, dialling and preparing take longer than a caller
    may wait, and whoever comes next finds them made.
    """

    def __init__(self, name: str, address: StoreAddress, make_requests: Callable[[], ItemRequests]) -> None:
        self.name = name
        self._address = address
        self._make_requests = make_requests
        self._idle: deque[_Line] = deque()
        self._late: deque[_Line] = deque()
        self._changed = threading.Condition()
        """Guards what follows; told when a line is free, or could not be made."""
        self._wanting = 0
        self._dialing = 0
        self._failed_dials = 0
        self._why = ""
        self._lost = 0
        self._closings = 0

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        check_put(key, item, life_ms, after)
        return as_flag(self._ask(lambda requests: requests.put(key, item, life_ms, after), limit_s), self.name)

    def hand_over(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> None:
        check_put(key, item, life_ms, after)
        until = time.monotonic() + limit_s
        with self._line(until) as line:
            line.send(line.requests.put(key, item, life_ms, after), until)
        if line.unread >= MAX_UNREAD:
            # What was handed over before is told by settle; this one was sent.
            with contextlib.suppress(TakeOnceUnavailable), self._line(until) as line:
                line.must_read_all(until)

    def take(self, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        return as_item(self._ask(lambda requests: requests.take(key, nonce), limit_s), self.name)

    def purge(self, key: bytes, limit_s: float) -> bool:
        check_key(key)
        return as_flag(self._ask(lambda requests: requests.purge(key), limit_s), self.name)

    def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float, instead_of: bytes = NOTHING) -> bytes:
        check_agreement(key, proposal, life_ms)
        reply = self._ask(lambda requests: requests.agree(key, proposal, life_ms, instead_of), limit_s)
        return as_agreement(reply, self.name)

    def check(self, limit_s: float) -> bool:
        with contextlib.suppress(TakeOnceUnavailable):
            return not isinstance(self._ask(lambda requests: _PING, limit_s), hiredis.ReplyError)
        return False

    def settle(self) -> tuple[int, int]:
        unread = 0
        for lines in (self._idle, self._late):
            for _ in range(len(lines)):
                with contextlib.suppress(IndexError):
                    line = lines.popleft()
                    try:
                        line.read_what_is_there()
                    except _BROKEN:
                        self._end(line)
                        continue
                    unread += line.unread
                    self._put_away(line)
        return unread, self._lost

    def close(self) -> None:
        with self._changed:
            self._closings += 1  # lines in use, and those that are being made, end when they come back
        self._end_idle_lines()
        for _ in range(len(self._late)):
            with contextlib.suppress(IndexError):
                self._end(self._late.popleft())

    # -- lines -------------------------------------------------------------------------------------

    def _ask(self, make: Callable[[ItemRequests], bytes], limit_s: float) -> Any:
        until = time.monotonic() + limit_s
        with self._line(until) as line:
            reply = line.ask(make(line.requests), until)
            if must_prepare(reply):
                line.prepare(until)
                reply = line.ask(make(line.requests), until)
            return reply

    @contextlib.contextmanager
    def _line(self, until: float) -> Iterator[_Line]:
        """A connection for this thread alone; it is kept unless anything went wrong on it."""
        line: _Line | None = None
        try:
            line = self._idle_line() or self._late_line() or self._next_line(until)
            if line.must_prepare:
                line.prepare(until)
            yield line
        except _BROKEN as wrong:
            if line is not None and isinstance(wrong, TimeoutError):
                has_waited = line.is_late or line.is_over
                self._put_away(line)
                if has_waited:
                    self._end_idle_lines()  # they may be as dead as this one
            elif line is not None:
                self._end(line)
            said = f"no answer in time from {self._address}" if isinstance(wrong, TimeoutError) else wrong
            raise TakeOnceUnavailable(f"{self.name}: {said}") from None
        except BaseException:
            if line is not None:
                self._end(line)
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
                if time.monotonic() - line.used_at < MAX_IDLE_S:
                    line.read_what_is_there()
                    return line
            except _BROKEN:
                pass
            self._end(line)

    def _late_line(self) -> _Line | None:
        """One whose answer is there by now."""
        for _ in range(len(self._late)):
            try:
                line = self._late.popleft()
            except IndexError:
                return None
            try:
                line.read_what_is_there()
            except _BROKEN:
                self._end(line)
                continue
            if not line.is_late:
                return line
            self._put_away(line)
        return None

    def _put_away(self, line: _Line) -> None:
        """Keep it for the next thread, or until its answer has come; not for ever."""
        self._count(line)
        if not line.is_late:
            self._give_back(line)
        elif line.is_over or line.closings != self._closings or time.monotonic() - line.used_at >= MAX_IDLE_S:
            self._end(line)
        else:
            self._late.append(line)
            while len(self._late) > MAX_LATE:
                with contextlib.suppress(IndexError):
                    self._end(self._late.popleft())

    def _next_line(self, until: float) -> _Line:
        """The next one that is made, or given back. Raises what a line raises."""
        with self._changed:
            failed = self._failed_dials
            self._wanting += 1
            try:
                if self._dialing < min(self._wanting, MAX_DIALING):
                    try:
                        threading.Thread(target=self._dial, name="coatcheck-dial", daemon=True).start()
                    except RuntimeError as shortage:
                        raise ConnectionError(str(shortage)) from None
                    self._dialing += 1
                while True:
                    with contextlib.suppress(IndexError):
                        return self._idle.pop()
                    if self._failed_dials != failed:
                        raise ConnectionError(self._why)
                    if not self._changed.wait(_left(until)):
                        raise TimeoutError
            finally:
                self._wanting -= 1

    def _dial(self) -> None:
        closings, line, why = self._closings, None, ""
        try:
            line = _Line(self._address, self._make_requests(), time.monotonic() + CONNECT_LIMIT_S, closings)
        except _BROKEN as wrong:
            why = f"cannot connect to {self._address}: {wrong or 'no answer in time'}"
        finally:
            with self._changed:
                self._dialing -= 1
                if line is None:
                    self._failed_dials += 1
                    self._why = why or f"cannot connect to {self._address}"
                    self._changed.notify_all()
        if line is not None:
            self._give_back(line)

    def _give_back(self, line: _Line) -> None:
        line.used_at = time.monotonic()
        self._count(line)
        if line.is_over or line.closings != self._closings or len(self._idle) >= MAX_IDLE:
            self._end(line)
            return
        self._idle.append(line)
        if self._wanting:
            with self._changed:
                self._changed.notify()
        if line.closings != self._closings:
            self._end_idle_lines()

    def _end(self, line: _Line) -> None:
        """What it carried last may not have been stored."""
        line.lose_all()
        self._count(line)
        line.close()

    def _end_idle_lines(self) -> None:
        while True:
            try:
                self._end(self._idle.pop())
            except IndexError:
                return

    def _count(self, line: _Line) -> None:
        if line.lost:
            with self._changed:
                self._lost += line.lost
            line.lost = 0


class _Line:
    """A connection, and the answers that are still on their way there. Whatever fails, it is not used again."""

    def __init__(self, address: StoreAddress, requests: ItemRequests, until: float, closings: int) -> None:
        self.requests = requests
        self.closings = closings
        """How often its owner had been closed when it began."""
        self.used_at = time.monotonic()
        self.is_late = False
        """An answer was too late for who asked, and is on its way yet."""
        self._awaited: deque[bool] = deque()
        """Of each answer that is on its way: whether it is one to what was handed over, and counts."""
        self.lost = 0
        """What was handed over and not stored, and has not been counted yet."""
        self.must_prepare = False
        """The server refuses requests until it is."""
        self.is_over = False
        """The server refuses what it would have to do."""
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._sock = _dial(address, until)
        try:
            self.take_steps(greet(address), until)
            self.prepare(until)
        except BaseException:
            self.close()
            raise

    @property
    def unread(self) -> int:
        """Answers to what was handed over, that are on their way."""
        return sum(self._awaited)

    def lose_all(self) -> None:
        """It ends: what was handed over may not have been stored."""
        self.lost += self.unread
        self._awaited.clear()

    def prepare(self, until: float) -> None:
        """Tell and ask what must be known before the rest."""
        self.take_steps(self.requests.prepare(), until)
        self.must_prepare = False

    def send(self, request: bytes, until: float) -> None:
        """Send what nobody waits for."""
        self._send(request, until)
        self._awaited.append(True)

    def ask(self, request: bytes, until: float) -> Any:
        """Send, and wait for the answer."""
        self._send(request, until)
        try:
            self.read_all(until)
            while True:
                reply = self._next(until)
                if reply is not _NOT_YET:
                    self._note(reply)
                    return reply
        except TimeoutError:
            self._awaited.append(False)
            self.is_late = True
            raise

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
        while self._awaited:
            self._count(self._next(until))

    def must_read_all(self, until: float) -> None:
        """The same; it ends if they do not come."""
        try:
            self.read_all(until)
        except TimeoutError:
            self.is_over = True
            raise

    def read_what_is_there(self) -> None:
        """The same without waiting. Raises ``OSError`` if the connection has ended."""
        while True:
            reply = self._reader.gets()
            if reply is not _NOT_YET:
                if not self._awaited:
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
        if reply is not _NOT_YET:
            self.lost += self._awaited.popleft() and reply != 1
            self.is_late = self.is_late and bool(self._awaited)
            self._note(reply)

    def _note(self, reply: Any) -> None:
        """An error leaves the order of answers as it is; some say that the next request would be refused as well."""
        if isinstance(reply, hiredis.ReplyError):
            self.must_prepare = self.must_prepare or must_prepare(reply)
            self.is_over = self.is_over or str(reply).startswith(_OVER)

    def _send(self, request: bytes, until: float) -> None:
        self._sock.settimeout(_left(until))
        try:
            self._sock.sendall(request)
        except TimeoutError:
            self.is_over = True  # half of it may have gone
            raise

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
        sock = socket.create_connection((address.host, address.port), _left(until))  # a limit for each address
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
