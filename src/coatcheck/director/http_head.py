"""Heads of requests and responses, read strictly: what could be read two ways is refused (RFC 9112).

A director that reads a request otherwise than the web server behind it does can be made to smuggle a second one
(RFC 9112, 11.2). So nothing is mended here: bare CR or LF, folded lines, blanks before the colon, two lengths, a length
beside a transfer coding, and every other doubt is an error, and the head that goes on is built anew from what was
understood.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError

CHUNKED: Final = -1
"""A body's length, when chunks tell its end."""
UNTIL_CLOSE: Final = -2
"""A response body's length, when the end of the connection tells it."""

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Field values hold visible ASCII, blanks, tabs and obs-text (RFC 9110, 5.5); CR and LF are counted apart.
_CONTROLS: Final = bytes(set(range(0x20)) - {0x09, 0x0A, 0x0D}) + b"\x7f"
_TARGET: Final = bytes(set(range(0x21, 0x7F)) - {ord("#")})
_HOST_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:[]%"
_MAX_LENGTH_DIGITS: Final = 15
_MAX_METHOD_BYTES: Final = 32
_MAX_HOST_BYTES: Final = 261
_MAX_KEPT_BLOCK_BYTES: Final = 4096
_MAX_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 256


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


# What a request's header means to the director.
_PLAIN, _DROPPED, _HOST, _LENGTH, _TRANSFER_CODING, _CONNECTION, _COOKIE, _EXPECT, _UPGRADE, _FORWARDING = range(10)
_REQUEST_KINDS: Final = {
    b"host": _HOST,
    b"content-length": _LENGTH,
    b"transfer-encoding": _TRANSFER_CODING,
    b"connection": _CONNECTION,
    b"cookie": _COOKIE,
    b"expect": _EXPECT,
    b"upgrade": _UPGRADE,
    **dict.fromkeys((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"), _FORWARDING),
    # Hop by hop (RFC 9110, 7.6.1), or claims that only we may make. "Proxy" becomes HTTP_PROXY in CGI heirs.
    **dict.fromkeys(
        (b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"http2-settings", b"proxy"),
        _DROPPED,
    ),
    **dict.fromkeys((b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server", b"x-real-ip"), _DROPPED),
}
_INTERNAL_PREFIX: Final = b"x-session-"
_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"})

_RESPONSE_DROPPED: Final = frozenset({b"connection", b"upgrade", b"keep-alive", b"proxy-connection", b"te"})
_RESPONSE_HEAD: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*+)?+"
    rb"(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t\x20-\x7e\x80-\xff]*+)*+"
)
_RESPONSE_SPECIAL: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|keep-alive|upgrade|proxy-connection|te):[ \t]*([^\r]*)",
    re.IGNORECASE,
)

# Names as they stood on the wire, with the colon, to what they mean: a name is looked at once. Bounded: when full,
# further names are looked at each time.
_request_names: dict[bytes, int] = {}


class RequestFields(msgspec.Struct, gc=False):
    """The version and the headers of a request, which can be read in one way only."""

    host: bytes
    lines: list[bytes]
    """The header lines that go on as they are."""
    length: int
    """Of the body in bytes; or :data:`CHUNKED`."""
    has_length: bool
    http10: bool
    keep_alive: bool
    cookies: bytes
    websocket: bool
    expects_continue: bool
    forwarding: bytes
    """The client's own forwarding lines, each ended by CRLF: to be believed only from a trusted proxy."""


class RequestHead(msgspec.Struct, gc=False):
    """A request head."""

    method: bytes
    target: bytes
    """In origin form, or ``*``."""
    fields: RequestFields


class ResponseHead(msgspec.Struct, gc=False):
    """A response head of a web server."""

    status: int
    status_line: bytes
    """Or, if nothing in the head concerns the director, the whole head; then ``lines`` is empty."""
    lines: list[bytes]
    length: int
    """Of the body in bytes; or :data:`CHUNKED` or :data:`UNTIL_CLOSE`."""
    keep_alive: bool
    as_sent: bool
    """Whether all of it goes on, so that the bytes can be passed on as they came."""
    websocket: bool


class RequestReader:
    """Reads the heads of one client's requests (RFC 9112, 2 to 6; RFC 9110, 7).

    Over one connection most requests differ in their first line alone. So the last header block is kept, and when the
    same bytes come again they are not read again: a comparison costs less than a tenth of the reading.
    """

    __slots__ = ("_block", "_fields", "_max_headers")

    def __init__(self, max_headers: int) -> None:
        self._max_headers = max_headers
        self._block: bytes | None = None
        self._fields: RequestFields | None = None

    def read(self, head: bytes) -> RequestHead:
        """Read a head, without the empty line that ends it.

        Raises BadHead with the status to answer.
        """
        first, second = head.find(b" "), -1
        if first > 0:
            second = head.find(b" ", first + 1)
        if second < 0:
            raise BadHead(HeadFault.REQUEST_LINE)
        method, target, block = head[:first], head[first + 1 : second], head[second + 1 :]
        authority = None
        if method not in _METHODS:
            _check_method(method)
        if not target or target.translate(None, _TARGET):
            raise BadHead(HeadFault.TARGET)
        if target[0] != 0x2F and not (target == b"*" and method == b"OPTIONS"):
            target, authority = _absolute_form(target)
        fields = self._fields
        if fields is None or block != self._block:
            fields = parse_request_fields(block, self._max_headers, has_authority=authority is not None)
            if authority is None and len(block) <= _MAX_KEPT_BLOCK_BYTES:
                self._block, self._fields = block, fields
        if authority is not None:
            # The target's authority overrules the Host header (RFC 9112, 3.2.2).
            fields = msgspec.structs.replace(fields, host=authority)
        return RequestHead(method, target, fields)


def parse_request_fields(block: bytes, max_headers: int, *, has_authority: bool) -> RequestFields:
    """Read what follows the target: the version, and the header lines.

    Raises BadHead with the status to answer.
    """
    lines = block.split(b"\r\n")
    http10 = _is_http10(lines[0])
    _check_lines(block, len(lines) - 1, max_headers)
    kept: list[bytes] = []
    special: dict[int, bytes] = {}
    del lines[0]
    for line in lines:
        name = line[: line.find(b":") + 1]
        kind = _request_names.get(name)
        if kind is None:
            kind = _learn(name)
        if not kind:
            kept.append(line)
        elif kind != _DROPPED:
            if kind == _COOKIE:
                kept.append(line)
            value = line if kind == _FORWARDING else line[len(name) :].strip(b" \t")
            special[kind] = _joined(kind, special[kind], value) if kind in special else value
    get = special.get
    options = get(_CONNECTION)
    keep_alive, upgrade = (not http10, False) if options is None else _connection(options, http10, kept)
    expect = get(_EXPECT)
    if expect is not None and expect.lower() != b"100-continue":
        raise BadHead(HeadFault.EXPECTATION, 417)
    length = _body_length(get(_LENGTH), get(_TRANSFER_CODING), http10)
    forwarding = get(_FORWARDING)
    return RequestFields(
        _host(get(_HOST), is_needed=not http10 and not has_authority),
        kept,
        length,
        _LENGTH in special,
        http10,
        keep_alive,
        get(_COOKIE, b""),
        upgrade and not http10 and length == 0 and get(_UPGRADE, b"").lower() == b"websocket",
        expect is not None and not http10 and length != 0,
        forwarding + b"\r\n" if forwarding else b"",
    )


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
                status, head, [], _body_length(special[0][1].rstrip(b" \t"), None, False), True, True, False
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
        keep_alive, _ = _connection(values[b"connection"], http10, kept)
    length, coding = values.get(b"content-length"), values.get(b"transfer-encoding")
    return ResponseHead(
        status,
        lines[0],
        kept,
        UNTIL_CLOSE if length is None and coding is None else _body_length(length, coding, http10),
        keep_alive,
        len(kept) == len(lines) - 1 and not http10,
        status == 101 and values.get(b"upgrade", b"").lower() == b"websocket",
    )


def _check_lines(head: bytes, headers: int, max_headers: int) -> None:
    if headers > max_headers:
        raise BadHead(HeadFault.TOO_LARGE, 431)
    if head.count(b"\n") != headers or head.count(b"\r") != headers:
        raise BadHead(HeadFault.BARE_LINE_END)
    if len(head.translate(None, _CONTROLS)) != len(head):
        raise BadHead(HeadFault.CONTROL_CHARACTER)


def _is_http10(version: bytes) -> bool:
    if version == b"HTTP/1.1":
        return False
    if version == b"HTTP/1.0":
        return True
    if len(version) == 8 and version.startswith(b"HTTP/") and version[5:].replace(b".", b"0").isdigit():
        raise BadHead(HeadFault.VERSION, 505)
    raise BadHead(HeadFault.REQUEST_LINE)


def _check_method(method: bytes) -> None:
    if len(method) > _MAX_METHOD_BYTES or method.translate(None, _TOKEN):
        raise BadHead(HeadFault.REQUEST_LINE)
    if method == b"CONNECT":
        raise BadHead(HeadFault.METHOD, 501)


def _absolute_form(target: bytes) -> tuple[bytes, bytes]:
    """``http://host/path`` as a path and a host, which overrules the Host header (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadHead(HeadFault.TARGET)
    authority, slash, path = rest.partition(b"/")
    if b"?" in authority:
        authority, _, query = rest.partition(b"?")
        slash, path = b"/", b"?" + query
    if not authority or authority.translate(None, _HOST_CHARACTERS):
        raise BadHead(HeadFault.TARGET)
    return (b"/" + path if slash else b"/"), authority


def _learn(name_and_colon: bytes) -> int:
    """What a header name means. A name that is no token raises: that covers folded lines, blanks and lost colons."""
    name = name_and_colon[:-1]
    if not name or len(name) > _MAX_NAME_BYTES or name.translate(None, _TOKEN):
        raise BadHead(HeadFault.HEADER_NAME)
    lower = name.lower()
    kind = _REQUEST_KINDS.get(lower, _PLAIN)
    # CGI, and what descends from it, takes "_" for "-": such a twin of a name that means something goes nowhere.
    twin = lower.replace(b"_", b"-")
    if twin.startswith(_INTERNAL_PREFIX) or (twin != lower and twin in _REQUEST_KINDS):
        kind = _DROPPED
    if len(_request_names) < _MAX_NAMES:
        _request_names[name_and_colon] = kind
    return kind


def _joined(kind: int, first: bytes, second: bytes) -> bytes:
    """Two lines of one name, where that is allowed (RFC 9110, 5.3)."""
    if kind == _HOST:
        raise BadHead(HeadFault.HOST)
    if kind == _LENGTH:
        raise BadHead(HeadFault.LENGTH)
    if kind == _TRANSFER_CODING:
        raise BadHead(HeadFault.TRANSFER_CODING)
    separator = {_COOKIE: b"; ", _FORWARDING: b"\r\n"}.get(kind, b", ")
    return first + separator + second


def _connection(options: bytes, http10: bool, kept: list[bytes]) -> tuple[bool, bool]:
    """Whether the connection goes on and whether an upgrade is asked for; removes the headers that it names."""
    lower = options.lower()
    if lower == b"keep-alive":
        return True, False
    if lower == b"close":
        return False, False
    tokens = {token.strip(b" \t") for token in lower.split(b",")}
    named = tuple(token + b":" for token in tokens - {b"close", b"keep-alive", b"upgrade", b""})
    if named:
        kept[:] = [line for line in kept if not line.lower().startswith(named)]
    keep_alive = b"close" not in tokens and (not http10 or b"keep-alive" in tokens)
    return keep_alive, b"upgrade" in tokens


def _body_length(length: bytes | None, coding: bytes | None, http10: bool) -> int:
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


def _host(host: bytes | None, *, is_needed: bool) -> bytes:
    if host is None and not is_needed:
        return b""
    if not host or len(host) > _MAX_HOST_BYTES or host.translate(None, _HOST_CHARACTERS):
        raise BadHead(HeadFault.HOST)
    return host
