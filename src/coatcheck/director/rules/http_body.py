"""The end of a chunked body, found strictly (RFC 9112, 7.1)."""

from __future__ import annotations

import re
from typing import Final

from coatcheck.director.rules.http_framing import BadHead, HeadFault

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_MAX_SIZE_LINE_BYTES: Final = 512
_MAX_TRAILER_BYTES: Final = 8192

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class ChunkedReader:
    """Takes a chunked body in pieces of any size and gives its payload; extensions and trailers are dropped."""

    __slots__ = ("_line", "_remaining", "_state", "_trailer_bytes", "rest")

    def __init__(self) -> None:
        self._state = _SIZE
        self._line = b""
        self._remaining = 0
        self._trailer_bytes = 0
        self.rest = b""
        """What came after the body's end."""

    @property
    def done(self) -> bool:
        """Whether the body has ended."""
        return self._state == _DONE

    def feed(self, piece: bytes) -> list[bytes]:
        """The payload within the next piece.

        Raises BadHead when the framing is malformed.
        """
        payload: list[bytes] = []
        if self._line:
            piece, self._line = self._line + piece, b""
        at, end = 0, len(piece)
        while at < end and self._state != _DONE:
            if self._state == _DATA:
                taken = min(self._remaining, end - at)
                payload.append(piece[at : at + taken])
                at += taken
                self._remaining -= taken
                if not self._remaining:
                    self._state = _DATA_END
                continue
            stop = piece.find(b"\r\n", at)
            if stop < 0:
                self._keep_line(piece[at:])
                return payload
            self._take_line(piece[at:stop])
            at = stop + 2
        if self._state == _DONE:
            self.rest = piece[at:]
        return payload

    def _keep_line(self, line: bytes) -> None:
        # A bare LF never becomes a line end by waiting, and a long line never a good one.
        limit = 1 if self._state == _DATA_END else _MAX_SIZE_LINE_BYTES
        if self._state == _TRAILER:
            limit = _MAX_TRAILER_BYTES
        if b"\n" in line or len(line) > limit or b"\r" in line[:-1]:
            raise BadHead(HeadFault.CHUNK)
        self._line = line

    def _take_line(self, line: bytes) -> None:
        if self._state == _DATA_END:
            if line:
                raise BadHead(HeadFault.CHUNK)
            self._state = _SIZE
        elif self._state == _SIZE:
            match = _SIZE_LINE.fullmatch(line)
            if match is None or len(line) > _MAX_SIZE_LINE_BYTES:
                raise BadHead(HeadFault.CHUNK)
            self._remaining = int(match[1], 16)
            self._state = _DATA if self._remaining else _TRAILER
        elif not line:
            self._state = _DONE
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _MAX_TRAILER_BYTES or not _TRAILER_LINE.fullmatch(line):
                raise BadHead(HeadFault.CHUNK)
