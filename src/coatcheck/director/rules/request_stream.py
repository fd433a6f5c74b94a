"""A client's bytes, cut into the heads and bodies of requests (RFC 9112, 2 and 6)."""

from __future__ import annotations

from typing import Final

from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import CHUNKED, BadHead, HeadFault
from coatcheck.director.rules.request_head import RequestHead, RequestReader

_FIRST_BYTES: Final = frozenset(b"\r!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class RequestStream:
    """What has come from one client and is not yet on its way.

    Holds a head that is not whole, of ``max_head_bytes`` and one read at most, or what was read behind a request.
    """

    __slots__ = (
        "_before", "_chunks", "_max_head_bytes", "_reader", "_remaining", "_searched", "body_done", "buffer", "rest",
    )  # fmt: skip

    def __init__(self, reader: RequestReader, max_head_bytes: int) -> None:
        self._reader = reader
        self._max_head_bytes = max_head_bytes
        self.buffer = bytearray()
        """What waits here."""
        self._before: RequestHead | None = None
        self._searched = 0
        self._remaining = 0
        self._chunks: ChunkedReader | None = None
        self.body_done = True
        """Whether the body of the current request has come in full."""
        self.rest = b""
        """What was read behind the head or the body that was just found."""

    def hold(self, data: bytes) -> None:
        """Keep bytes that came before their turn."""
        self.buffer += data

    def take_all(self) -> bytes:
        """Everything that waits here; nothing is left."""
        data = bytes(self.buffer)
        self.buffer.clear()
        self._searched = 0
        return data

    def head(self, data: bytes) -> RequestHead | None:
        """The head that ``data`` begins with, when nothing waits here; ``None``: it is not whole, and is kept.

        Raises BadHead for what is no head or can never become one.
        """
        end = len(data) - 4
        # One empty line before a request is forgiven (RFC 9112, 2.2).
        start = 2 if data.startswith(b"\r\n") else 0
        head = None
        if end <= self._max_head_bytes and data.endswith(b"\r\n\r\n"):
            # It is a head and nothing else, nearly always. What can be read as one has no empty line within, and so
            # its end need not be searched for, which takes as long as all the reading.
            try:
                head = self._reader.read(data[start:end], self._before)
            except BadHead:
                pass  # There is more than a head in it, or it is none: below it is read to its first empty line.
        if head is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer += data
                self._check_partial_head()
                return None
            if end > self._max_head_bytes:
                raise BadHead(HeadFault.TOO_LARGE, 431)
            head = self._reader.read(data[start:end], self._before)
        self._before = head
        end += 4
        self.rest = data[end:] if len(data) > end else b""
        length = head.fields.length
        if length:
            self.body_done = False
            self._remaining = length
            self._chunks = ChunkedReader() if length == CHUNKED else None
        return head

    def next_head(self) -> RequestHead | None:
        """The head that begins what waits here; ``None``: it is not whole. Raises as :meth:`head`."""
        if self.buffer.find(b"\r\n\r\n", self._searched) >= 0:
            return self.head(self.take_all())
        if self.buffer:
            self._check_partial_head()
        return None

    def _check_partial_head(self) -> None:
        """Refuse at once what can never become a good head."""
        buffer, start = self.buffer, self._searched
        if len(buffer) > self._max_head_bytes:
            raise BadHead(HeadFault.TOO_LARGE, 431)
        if buffer.count(b"\n", start) != buffer.count(b"\r\n", max(0, start - 1)) or buffer[0] not in _FIRST_BYTES:
            raise BadHead(HeadFault.BARE_LINE_END)
        self._searched = max(0, len(buffer) - 3)

    def body(self, data: bytes) -> bytes:
        """The part of the body in the next bytes, framed as it goes on: what the web server reads is what we read.

        Raises BadHead when the framing is malformed.
        """
        if self._chunks is None:
            piece, self.rest = data[: self._remaining], data[self._remaining :]
            self._remaining -= len(piece)
            self.body_done = not self._remaining
            return piece
        payload = self._chunks.feed(data)
        self.body_done, self.rest = self._chunks.done, self._chunks.rest
        piece = b"".join([b"%x\r\n%b\r\n" % (len(part), part) for part in payload])
        return piece + b"0\r\n\r\n" if self.body_done else piece
