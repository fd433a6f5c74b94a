"""A web server's bytes, cut into the heads and the body of one response (RFC 9112, 4 and 6)."""

from __future__ import annotations

from typing import Final

from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import CHUNKED, UNTIL_CLOSE, BadHead, HeadFault
from coatcheck.director.rules.response_head import ResponseHead, ResponseReader

_MAX_INFORMATIONAL: Final = 16
_HSTS_NAME: Final = b"\r\nstrict-transport-security:"
_NO_BODY_STATUSES: Final = frozenset({204, 304})


class ResponseStream:
    """Finds the end of a response; holds a head that is not whole, of ``max_head_bytes`` at most."""

    __slots__ = (
        "_buffer", "_chunks", "_dechunk", "_informational", "_max_head_bytes", "_reader", "_remaining", "data",
        "done", "end", "ends_with_connection", "keep_alive",
    )  # fmt: skip

    def __init__(self, reader: ResponseReader, max_head_bytes: int) -> None:
        self._reader = reader
        self._max_head_bytes = max_head_bytes
        self._buffer = b""
        self._informational = 0
        self._remaining = 0
        self._chunks: ChunkedReader | None = None
        self._dechunk = False
        self.data = b""
        """The bytes that began with the head that was just found."""
        self.end = 0
        """Where in them the head ends."""
        self.keep_alive = False
        """Whether the web server's connection can be used again."""
        self.done = False
        self.ends_with_connection = False
        """Whether the end of the connection is the end of the body."""

    def forget(self) -> None:
        """The response that was begun comes to nothing: another one comes next."""
        self._buffer = b""
        self._informational = 0

    def head(self, data: bytes) -> ResponseHead | None:
        """The head of a response, final or informational (1xx); ``None``: it is not whole, and is kept.

        Raises BadHead for what is no HTTP, or too much of it.
        """
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > self._max_head_bytes:
            if len(data) > self._max_head_bytes:
                raise BadHead(HeadFault.TOO_LARGE, 502)
            self._buffer = data
            return None
        self._buffer = b""
        head = self._reader.read(data[:end])
        self.data = data
        self.end = end + 4
        if head.status >= 200:
            self._informational = 0
            return head
        self._informational += 1
        if self._informational > _MAX_INFORMATIONAL:
            raise BadHead(HeadFault.TOO_LARGE, 502)
        return head

    def begin_body(self, length: int, *, dechunk: bool) -> None:
        """The final head was found; ``dechunk``: the client knows no chunks."""
        self._remaining = length
        self.done = False
        self.ends_with_connection = length == UNTIL_CLOSE
        self._chunks = ChunkedReader() if length == CHUNKED else None
        self._dechunk = dechunk

    def body(self, data: bytes) -> bytes:
        """What of the next bytes goes on to the client; then :attr:`done` says whether that was the end.

        Raises BadHead when the framing is malformed.
        """
        if self._chunks is not None:
            return self._chunked(self._chunks, data)
        if self.ends_with_connection:
            return data
        surplus = len(data) - self._remaining
        if surplus > 0:
            # More than was announced: the rest must not become the next response.
            data = data[: self._remaining]
            self.keep_alive = False
        self._remaining -= len(data)
        self.done = not self._remaining
        return data

    def _chunked(self, chunks: ChunkedReader, data: bytes) -> bytes:
        payload = chunks.feed(data)
        if chunks.rest:
            self.keep_alive = False
            data = data[: -len(chunks.rest)]
        self.done = chunks.done
        return b"".join(payload) if self._dechunk else data


def body_length(head: ResponseHead, method: bytes) -> int:
    """How long the body of this response is: in bytes, chunked, or until the end of the connection (RFC 9112, 6.3)."""
    return 0 if method == b"HEAD" or head.status in _NO_BODY_STATUSES else head.length


def rebuilt_head(head: ResponseHead, length: int, *, http10: bool, close: bool, hsts: bytes) -> bytes:
    """The response head as our own: our version, no hop-by-hop headers but ours (RFC 9110, 7.6.1)."""
    # Without anything special, the "line" is the whole head.
    lines = [b"HTTP/1.1 " + head.status_line[9:], *head.lines]
    if http10 and length == CHUNKED:
        lines = [line for line in lines if not line.lower().startswith(b"transfer-encoding:")]
    if head.status == 101:
        lines += [b"Connection: Upgrade", b"Upgrade: websocket"]
    elif head.status >= 200 and close:
        lines.append(b"Connection: close")
    elif head.status >= 200 and http10:
        lines.append(b"Connection: keep-alive")
    rebuilt = b"\r\n".join(lines)
    if hsts and head.status >= 200 and _HSTS_NAME not in rebuilt.lower():
        rebuilt += b"\r\n" + hsts
    return rebuilt + b"\r\n\r\n"
