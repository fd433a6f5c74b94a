"""How HTTP/1.1 messages are framed, and why a head is refused (RFC 9112)."""

from __future__ import annotations

from enum import Enum
from typing import Final

from coatcheck.errors import CoatcheckError

CHUNKED: Final = -1
"""A body's length, when chunks tell its end."""
UNTIL_CLOSE: Final = -2
"""A response body's length, when the end of the connection tells it."""

_MAX_LENGTH_DIGITS: Final = 15
_END_TO_END: Final = frozenset(
    {
        b"cache-control", b"content-encoding", b"content-length", b"content-type", b"cookie", b"host", b"location",
        b"set-cookie", b"strict-transport-security", b"transfer-encoding",
    }
)  # fmt: skip
"""Never taken for hop by hop, whoever names them in Connection: without a length the end of a body would be another,
and no sender may name what is meant for all recipients (RFC 9110, 7.6.1)."""


class HeadFault(Enum):
    """Why a head was refused."""

    BARE_LINE_END = "a bare CR or LF"
    CONTROL_CHARACTER = "a control character"
    REQUEST_LINE = "the request line is malformed"
    TARGET = "the request target is malformed"
    VERSION = "the HTTP version is not spoken here"
    METHOD = "the method is not served here"
    HEADER_NAME = "a header line is malformed, folded, or has a blank before the colon"
    TOO_LARGE = "the head is too large"
    HOST = "the Host header is missing, doubled or malformed"
    LENGTH = "the Content-Length is malformed or doubled"
    TRANSFER_CODING = "the transfer coding is unknown, doubled, or beside a Content-Length"
    EXPECTATION = "the expectation cannot be met"
    CHUNK = "the chunked framing is malformed"
    STATUS_LINE = "the status line is malformed"


class BadHead(CoatcheckError):
    """A head or a framing that is refused; ``status`` is what a client is told."""

    def __init__(self, fault: HeadFault, status: int = 400) -> None:
        super().__init__(fault.value)
        self.fault = fault
        self.status = status


def connection_options(options: bytes, http10: bool, kept: list[bytes]) -> tuple[bool, bool]:
    """Whether the connection goes on and whether an upgrade is asked for; removes the headers that it names."""
    lower = options.lower()
    if lower == b"keep-alive":
        return True, False
    if lower == b"close":
        return False, False
    tokens = {token.strip(b" \t") for token in lower.split(b",")}
    named = tuple(token + b":" for token in tokens - _END_TO_END - {b"close", b"keep-alive", b"upgrade", b""})
    if named:
        kept[:] = [line for line in kept if not line.lower().startswith(named)]
    keep_alive = b"close" not in tokens and (not http10 or b"keep-alive" in tokens)
    return keep_alive, b"upgrade" in tokens


def body_length(length: bytes | None, coding: bytes | None, http10: bool) -> int:
    """The body's length in bytes, or :data:`CHUNKED` (RFC 9112, 6.3).

    Raises BadHead when the two headers leave any doubt.
    """
    if coding is not None:
        # HTTP/1.0 knows no transfer codings, and a length beside one is the classic of smuggling (RFC 9112, 6.1).
        if length is not None or http10 or coding.lower() != b"chunked":
            raise BadHead(HeadFault.TRANSFER_CODING)
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        raise BadHead(HeadFault.LENGTH)
    return int(length)
