"""Heads of responses: read strictly too, so that no answer can be taken for two (RFC 9112, 4 to 6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from coatcheck.director.rules.http_framing import UNTIL_CLOSE, BadHead, HeadFault, body_length, connection_options
from coatcheck.director.rules.request_head import RequestHead
from coatcheck.error_pages import ErrorPages

_RESPONSE_DROPPED: Final = frozenset({b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"te"})
_RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?+"
    rb"(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+)*+"
)
_ACCEPT: Final = re.compile(rb"^accept:[ \t]*([^\r]*)\r", re.IGNORECASE | re.MULTILINE)
_RESPONSE_SPECIAL: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|keep-alive|upgrade|proxy-connection|te):[ \t]*([^\r]*)",
    re.IGNORECASE,
)


# The two ways in which servers spell it; who spells it otherwise costs the director more, and nothing else.
_SET_COOKIE: Final = (b"\r\nset-cookie:", b"\r\nSet-Cookie:")
_VALUE_BYTES: Final = bytes({0x09, *range(0x20, 0x7F), *range(0x80, 0x100)})
_MAX_KNOWN: Final = 128
_MAX_KNOWN_BYTES: Final = 1024


class ResponseHead(msgspec.Struct, frozen=True, gc=False):
    """A response head of a web server."""

    status: int
    status_line: bytes
    """Or, if nothing in the head concerns the director, the whole head; then ``lines`` is empty."""
    lines: Sequence[bytes]
    length: int
    """Of the body in bytes; or :data:`CHUNKED` or :data:`UNTIL_CLOSE`."""
    keep_alive: bool
    as_sent: bool
    """Whether all of it goes on, so that the bytes can be passed on as they came."""
    websocket: bool


class ResponseReader:
    """Reads the heads of responses, and remembers the latest: an app often answers many requests alike.

    What is remembered is the head that was read, byte for byte: nothing is taken for something else. A cookie that is
    set comes once: it is left out of what is remembered, and judged by itself.
    """

    __slots__ = ("_known", "_max_headers")

    def __init__(self, max_headers: int) -> None:
        self._max_headers = max_headers
        # Bounded by _MAX_KNOWN times _MAX_KNOWN_BYTES; the oldest leaves first.
        self._known: dict[bytes, ResponseHead] = {}

    def read(self, head: bytes) -> ResponseHead:
        """Read a head, without the empty line that ends it. Raises as :func:`parse_response_head`."""
        known = self._known.get(head)
        if known is not None:
            return known
        for spelling in _SET_COOKIE:
            if spelling in head:
                return self._read_with_cookies(head, spelling)
        return self._understood(head)

    def _read_with_cookies(self, head: bytes, spelling: bytes) -> ResponseHead:
        rest = head
        at = rest.find(spelling)
        while at >= 0:
            value = at + len(spelling)
            end = rest.find(b"\r\n", value)
            if end < 0:
                end = len(rest)
            if rest[value:end].translate(None, _VALUE_BYTES):
                return parse_response_head(head, self._max_headers)
            rest = rest[:at] + rest[end:]
            at = rest.find(spelling, at)
        read = self._known.get(rest) or self._understood(rest)
        if read.status >= 200 and read.as_sent and read.status_line == rest:
            return ResponseHead(read.status, head, [], read.length, read.keep_alive, True, read.websocket)
        # Its lines stand one by one, and the cookies belong among them.
        return parse_response_head(head, self._max_headers)

    def _understood(self, head: bytes) -> ResponseHead:
        read = parse_response_head(head, self._max_headers)
        # What a cookie carries is kept no longer than needed, however it is spelt.
        if len(head) <= _MAX_KNOWN_BYTES and b"set-cookie:" not in head.lower():
            if len(self._known) >= _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[head] = read
        return read


def parse_response_head(head: bytes, max_headers: int) -> ResponseHead:
    """Read a response head of a web server, without the empty line that ends it (RFC 9112, 4 to 6).

    Raises BadHead; the client is to be told 502. Whether the status or the method forbids a body is for the caller.
    """
    match = _RESPONSE_HEAD.fullmatch(head)
    if match is None:
        raise BadHead(HeadFault.STATUS_LINE, 502)
    status = int(match[2])
    special = _RESPONSE_SPECIAL.findall(head)
    if match[1] == b"1" and status >= 200:
        # The common case: nothing in it but a length concerns the director, and it can go on as it is.
        if not special:
            return ResponseHead(status, head, [], UNTIL_CLOSE, True, True, False)
        if len(special) == 1 and special[0][0].lower() == b"content-length":
            return ResponseHead(
                status, head, [], body_length(special[0][1].rstrip(b" \t"), None, False), True, True, False
            )
    return _parse_special_response(head, status, special, http10=match[1] == b"0", max_headers=max_headers)


def _parse_special_response(
    head: bytes, status: int, special: list[tuple[bytes, bytes]], *, http10: bool, max_headers: int
) -> ResponseHead:
    lines = head.split(b"\r\n")
    if len(lines) - 1 > max_headers:
        raise BadHead(HeadFault.TOO_LARGE, 502)
    kept = [line for line in lines[1:] if line.partition(b":")[0].lower() not in _RESPONSE_DROPPED]
    values: dict[bytes, bytes] = {}
    for name, value in special:
        lower = name.lower()
        if lower in values and lower in (b"content-length", b"transfer-encoding"):
            raise BadHead(HeadFault.LENGTH, 502)
        values[lower] = (values[lower] + b", " if lower in values else b"") + value.strip(b" \t")
    keep_alive = not http10
    if b"connection" in values:
        keep_alive, _ = connection_options(values[b"connection"], http10, kept)
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    return ResponseHead(
        status,
        lines[0],
        kept,
        UNTIL_CLOSE if length is None and coding is None else body_length(length, coding, http10),
        keep_alive,
        len(kept) == len(lines) - 1 and not http10,
        status == 101 and values.get(b"upgrade", b"").lower() == b"websocket",
    )


def own_response(status: int, close: bool, hsts: bytes, pages: ErrorPages, head: RequestHead | None = None) -> bytes:
    """A response that the director itself gives; it names the status and nothing else."""
    page = pages.page(status, _accepted(head.fields.lines) if head is not None else b"")
    lines = [
        b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode("ascii")),
        *(b"%b: %b" % (name.title(), value) for name, value in page.headers),
        b"Content-Length: %d" % len(page.body),
        b"Cache-Control: no-store",
    ]
    if status in (429, 503):
        lines.append(b"Retry-After: 1")
    if hsts:
        lines.append(hsts)
    if close:
        lines.append(b"Connection: close")
    elif head is not None and head.fields.http10:
        lines.append(b"Connection: keep-alive")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head is not None and head.method == b"HEAD" else page.body)


def _accepted(lines: bytes) -> bytes:
    """The values of all ``Accept`` headers."""
    return b",".join(_ACCEPT.findall(lines))
