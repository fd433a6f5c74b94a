"""Parsing RESP requests from strangers: an array of bulk strings, or one line of words. Strict and bounded.

hiredis parses replies of servers that we chose to trust; it allocates whatever a length line claims, so it must
not see the bytes of an unknown client.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError

_CRLF: Final = b"\r\n"
_MAX_LENGTH_LINE_BYTES: Final = 16
_ARRAY, _BULK = b"*$"

# The two requests of the hot path, as our own client writes them; all else takes the longer way.
_GET: Final = re.compile(rb"\*2\r\n\$6\r\nCC\.GET\r\n\$16\r\n(.{16})\r\n", re.DOTALL)
_PUT: Final = re.compile(
    rb"\*5\r\n\$6\r\nCC\.PUT\r\n\$16\r\n(.{16})\r\n\$(?:0\r\n()|16\r\n(.{16}))\r\n"
    rb"\$([1-9]\d?)\r\n(\d{1,16})\r\n\$(\d{1,7})\r\n",
    re.DOTALL,
)


class ProtocolViolation(CoatcheckError):
    """A client sent bytes that are no request, or more than it may: the connection is closed."""


class RequestLimits(msgspec.Struct, frozen=True):
    """What one request of a client may take: arguments, bytes of one argument, bytes in all, bytes of a line."""

    args: int
    arg_bytes: int
    request_bytes: int
    line_bytes: int


class RequestParser:
    """Takes bytes as they come and gives requests, each a list of arguments.

    Keeps at most one incomplete request of ``limits.request_bytes`` and what one read brings. Dribbled
    bytes are not parsed again until the argument that is being received is complete.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self._data = b""
        self._at = 0
        self._rest = bytearray()
        self._need = 0

    @property
    def buffered_bytes(self) -> int:
        return len(self._rest) + len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if self._at < len(self._data):
            self._keep(self._at, 0)
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        self._data = data
        self._at = 0

    def next(self) -> list[bytes] | None:
        """The next request, or ``None`` until more bytes come. Raises :class:`ProtocolViolation`."""
        data = self._data
        while self._at < len(data):
            at = self._at
            if data[at] != _ARRAY:
                request = self._inline(at)
            else:
                request = self._hot(at) or self._array(at)
            if request is None:
                return None
            if request:
                return request
        return None

    def _hot(self, at: int) -> list[bytes] | None:
        data = self._data
        if (put := _PUT.match(data, at)) is not None:
            key, nothing, seen, digits, life, size = put.groups()
            start = put.end()
            end = start + int(size)
            is_whole = end - start <= self.limits.arg_bytes and data[end : end + 2] == _CRLF
            if is_whole and int(digits) == len(life):
                self._at = end + 2
                return [b"CC.PUT", key, nothing if seen is None else seen, life, data[start:end]]
        elif (get := _GET.match(data, at)) is not None and self.limits.arg_bytes >= 16:
            self._at = get.end()
            return [b"CC.GET", get[1]]
        return None

    def _array(self, start: int) -> list[bytes] | None:
        data, limits = self._data, self.limits
        count, at = self._length(start, start, limits.args)
        if at < 0:
            return None
        request: list[bytes] = []
        for _ in range(count):
            if at >= len(data):
                return self._keep(start, at - start + 1)
            if data[at] != _BULK:
                raise ProtocolViolation("expected '$'")
            size, at = self._length(start, at, limits.arg_bytes)
            if at < 0:
                return None
            end = at + size
            if end + 2 - start > limits.request_bytes:
                raise ProtocolViolation("the request is too large")
            if end + 2 > len(data):
                return self._keep(start, end + 2 - start)
            if data[end : end + 2] != _CRLF:
                raise ProtocolViolation("an argument does not end where it said")
            request.append(data[at:end])
            at = end + 2
        self._at = at
        return request

    def _length(self, start: int, at: int, most: int) -> tuple[int, int]:
        """The number in the line at ``at`` and where the next line begins; ``-1`` there if it is incomplete."""
        line_end = self._data.find(_CRLF, at, at + _MAX_LENGTH_LINE_BYTES)
        if line_end < 0:
            if len(self._data) - at >= _MAX_LENGTH_LINE_BYTES:
                raise ProtocolViolation("a length line is too long")
            self._keep(start, 0)
            return 0, -1
        digits = self._data[at + 1 : line_end]
        if not digits.isdigit():
            raise ProtocolViolation("a length is not a number")
        number = int(digits)
        if number > most:
            raise ProtocolViolation(f"a length is above {most}")
        return number, line_end + 2

    def _inline(self, at: int) -> list[bytes] | None:
        line_end = self._data.find(b"\n", at, at + self.limits.line_bytes)
        if line_end < 0:
            if len(self._data) - at >= self.limits.line_bytes:
                raise ProtocolViolation("the line is too long")
            return self._keep(at, 0)
        self._at = line_end + 1
        words = self._data[at:line_end].split()
        if len(words) > self.limits.args:
            raise ProtocolViolation(f"more than {self.limits.args} words")
        return words

    def _keep(self, start: int, need: int) -> list[bytes] | None:
        """Put the incomplete request aside until it has ``need`` bytes (0: any more)."""
        self._rest = bytearray(self._data[start:])
        self._need = need
        self._data = b""
        self._at = 0
        return None
