"""Heads of requests and responses, read strictly: what could be read two ways is refused (RFC 9112).

A director that reads a request otherwise than the web server behind it does can be made to smuggle a second one
(RFC 9112, 11.2). So nothing is mended here: bare CR or LF, folded lines, blanks before the colon, two lengths, a length
beside a transfer coding, and every other doubt is an error, and the head that goes on is built anew from what was
understood.
"""

from __future__ import annotations

from enum import Enum, IntEnum
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
_HOST: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:[]%"
_MAX_LENGTH_DIGITS: Final = 15
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


class _Kind(IntEnum):
    """What a header means to the director."""

    PLAIN = 0
    DROPPED = 1
    HOST = 2
    LENGTH = 3
    TRANSFER_CODING = 4
    CONNECTION = 5
    COOKIE = 6
    EXPECT = 7
    UPGRADE = 8
    FORWARDING = 9


_REQUEST_KINDS: Final = {
    b"host": _Kind.HOST,
    b"content-length": _Kind.LENGTH,
    b"transfer-encoding": _Kind.TRANSFER_CODING,
    b"connection": _Kind.CONNECTION,
    b"cookie": _Kind.COOKIE,
    b"expect": _Kind.EXPECT,
    b"upgrade": _Kind.UPGRADE,
    b"x-forwarded-for": _Kind.FORWARDING,
    b"x-forwarded-proto": _Kind.FORWARDING,
    b"x-forwarded-host": _Kind.FORWARDING,
    b"forwarded": _Kind.FORWARDING,
    # Hop by hop (RFC 9110, 7.6.1), or claims that only we may make. "Proxy" becomes HTTP_PROXY in CGI heirs.
    **dict.fromkeys(
        (b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"trailer", b"http2-settings", b"proxy"),
        _Kind.DROPPED,
    ),
    **dict.fromkeys((b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server", b"x-real-ip"), _Kind.DROPPED),
}
_RESPONSE_KINDS: Final = {
    b"content-length": _Kind.LENGTH,
    b"transfer-encoding": _Kind.TRANSFER_CODING,
    b"connection": _Kind.CONNECTION,
    b"upgrade": _Kind.UPGRADE,
    **dict.fromkeys((b"keep-alive", b"proxy-connection", b"te"), _Kind.DROPPED),
}
_INTERNAL_PREFIX: Final = b"x-session-"
_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"})

# Names as they stood on the wire, with the colon, to what they mean: a name is looked at once. Bounded: when full,
# further names are looked at each time.
_request_names: dict[bytes, int] = {}
_response_names: dict[bytes, int] = {}


class RequestHead(msgspec.Struct, gc=False):
    """A request head that can be read in one way only."""

    method: bytes
    target: bytes
    """In origin form, or ``*``."""
    host: bytes
    lines: list[bytes]
    """The header lines that go on as they are."""
    length: int
    """Of the body in bytes; or :data:`CHUNKED`."""
    http10: bool
    keep_alive: bool
    cookies: bytes
    websocket: bool
    expects_continue: bool
    forwarding: bytes
    """The client's own forwarding lines, each ended by CRLF: to be believed only from a trusted proxy."""


class ResponseHead(msgspec.Struct, gc=False):
    """A response head of a web server."""

    status: int
    status_line: bytes
    lines: list[bytes]
    length: int
    """Of the body in bytes; or :data:`CHUNKED` or :data:`UNTIL_CLOSE`."""
    keep_alive: bool
    as_sent: bool
    """Whether all of it goes on, so that the bytes can be passed on as they came."""
    websocket: bool


def parse_request_head(head: bytes, max_headers: int) -> RequestHead:
    """Read a request head, without the empty line that ends it (RFC 9112, 2 to 6; RFC 9110, 7).

    Raises BadHead with the status to answer.
    """
    lines = head.split(b"\r\n")
    _check_lines(head, len(lines) - 1, max_headers)
    method, target, authority, http10 = _request_line(lines[0])
    kept: list[bytes] = []
    special: dict[int, bytes] = {}
    del lines[0]
    for line in lines:
        name = line[: line.find(b":") + 1]
        kind = _request_names.get(name)
        if kind is None:
            kind = _learn(name, _request_names, _REQUEST_KINDS)
        if not kind:
            kept.append(line)
        elif kind != _Kind.DROPPED:
            if kind == _Kind.COOKIE:
                kept.append(line)
            value = line if kind == _Kind.FORWARDING else line[len(name) :].strip(b" \t")
            special[kind] = _joined(kind, special[kind], value) if kind in special else value
    get = special.get
    options = get(_Kind.CONNECTION)
    keep_alive, upgrade = (not http10, False) if options is None else _connection(options, http10, kept)
    expect = get(_Kind.EXPECT)
    if expect is not None and expect.lower() != b"100-continue":
        raise BadHead(HeadFault.EXPECTATION, 417)
    length = _body_length(get(_Kind.LENGTH), get(_Kind.TRANSFER_CODING), http10)
    forwarding = get(_Kind.FORWARDING)
    return RequestHead(
        method,
        target,
        _host(get(_Kind.HOST), authority, http10),
        kept,
        length,
        http10,
        keep_alive,
        get(_Kind.COOKIE, b""),
        upgrade and not http10 and length == 0 and get(_Kind.UPGRADE, b"").lower() == b"websocket",
        expect is not None and not http10,
        forwarding + b"\r\n" if forwarding else b"",
    )


def parse_response_head(head: bytes, max_headers: int) -> ResponseHead:
    """Read a response head of a web server, without the empty line that ends it (RFC 9112, 4 to 6).

    Raises BadHead; the client is to be told 502. Whether the status or the method forbids a body is for the caller.
    """
    lines = head.split(b"\r\n")
    _check_lines(head, len(lines) - 1, max_headers)
    status_line, http10 = lines[0], lines[0].startswith(b"HTTP/1.0 ")
    if not (http10 or status_line.startswith(b"HTTP/1.1 ")) or not status_line[9:12].isdigit():
        raise BadHead(HeadFault.STATUS_LINE, 502)
    status = int(status_line[9:12])
    if status < 100 or status_line[12:13] not in (b" ", b""):
        raise BadHead(HeadFault.STATUS_LINE, 502)
    kept: list[bytes] = []
    special: dict[int, bytes] = {}
    del lines[0]
    for line in lines:
        name = line[: line.find(b":") + 1]
        kind = _response_names.get(name)
        if kind is None:
            kind = _learn(name, _response_names, _RESPONSE_KINDS)
        if not kind:
            kept.append(line)
        elif kind == _Kind.LENGTH or kind == _Kind.TRANSFER_CODING:
            if kind in special:
                raise BadHead(HeadFault.LENGTH, 502)
            kept.append(line)
            special[kind] = line[len(name) :].strip(b" \t")
        else:
            value = line[len(name) :].strip(b" \t")
            special[kind] = special[kind] + b", " + value if kind in special else value
    keep_alive = not http10
    if _Kind.CONNECTION in special:
        keep_alive, _ = _connection(special[_Kind.CONNECTION], http10, kept)
    length, coding = special.get(_Kind.LENGTH), special.get(_Kind.TRANSFER_CODING)
    websocket = status == 101 and special.get(_Kind.UPGRADE, b"").lower() == b"websocket"
    return ResponseHead(
        status,
        status_line,
        kept,
        UNTIL_CLOSE if length is None and coding is None else _body_length(length, coding, http10),
        keep_alive,
        len(kept) == len(lines) and not http10,
        websocket,
    )


def _check_lines(head: bytes, headers: int, max_headers: int) -> None:
    if headers > max_headers:
        raise BadHead(HeadFault.TOO_LARGE, 431)
    if head.count(b"\n") != headers or head.count(b"\r") != headers:
        raise BadHead(HeadFault.BARE_LINE_END)
    if len(head.translate(None, _CONTROLS)) != len(head):
        raise BadHead(HeadFault.CONTROL_CHARACTER)


def _request_line(line: bytes) -> tuple[bytes, bytes, bytes | None, bool]:
    try:
        method, target, version = line.split(b" ")
    except ValueError:
        raise BadHead(HeadFault.REQUEST_LINE) from None
    if method not in _METHODS and (not method or len(method) > 32 or method.translate(None, _TOKEN)):
        raise BadHead(HeadFault.REQUEST_LINE)
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        known = len(version) == 8 and version.startswith(b"HTTP/") and version[5:].replace(b".", b"0").isdigit()
        raise BadHead(HeadFault.VERSION, 505) if known else BadHead(HeadFault.REQUEST_LINE)
    if method == b"CONNECT":
        raise BadHead(HeadFault.METHOD, 501)
    if not target or target.translate(None, _TARGET):
        raise BadHead(HeadFault.TARGET)
    authority = None
    if target[0] != 0x2F and not (target == b"*" and method == b"OPTIONS"):
        target, authority = _absolute_form(target)
    return method, target, authority, version == b"HTTP/1.0"


def _absolute_form(target: bytes) -> tuple[bytes, bytes]:
    """``http://host/path`` as a path and a host, which overrules the Host header (RFC 9112, 3.2.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise BadHead(HeadFault.TARGET)
    authority, slash, path = rest.partition(b"/")
    if b"?" in authority:
        authority, _, query = rest.partition(b"?")
        slash, path = b"/", b"?" + query
    if not authority or authority.translate(None, _HOST):
        raise BadHead(HeadFault.TARGET)
    return (b"/" + path if slash else b"/"), authority


def _learn(name_and_colon: bytes, names: dict[bytes, int], kinds: dict[bytes, _Kind]) -> int:
    """What a header name means. A name that is no token raises: that covers folded lines, blanks and lost colons."""
    name = name_and_colon[:-1]
    if not name or len(name) > _MAX_NAME_BYTES or name.translate(None, _TOKEN):
        raise BadHead(HeadFault.HEADER_NAME)
    lower = name.lower()
    kind = kinds.get(lower, _Kind.PLAIN)
    if kinds is _REQUEST_KINDS:
        # CGI, and what descends from it, takes "_" for "-": such a twin of a name that means something goes nowhere.
        twin = lower.replace(b"_", b"-")
        if twin.startswith(_INTERNAL_PREFIX) or (twin != lower and twin in kinds):
            kind = _Kind.DROPPED
    if len(names) < _MAX_NAMES:
        names[name_and_colon] = int(kind)
    return kind


def _joined(kind: int, first: bytes, second: bytes) -> bytes:
    """Two lines of one name, where that is allowed (RFC 9110, 5.3)."""
    match kind:
        case _Kind.HOST:
            raise BadHead(HeadFault.HOST)
        case _Kind.LENGTH:
            raise BadHead(HeadFault.LENGTH)
        case _Kind.TRANSFER_CODING:
            raise BadHead(HeadFault.TRANSFER_CODING)
        case _Kind.COOKIE:
            return first + b"; " + second
        case _Kind.FORWARDING:
            return first + b"\r\n" + second
        case _:
            return first + b", " + second


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


def _host(host: bytes | None, authority: bytes | None, http10: bool) -> bytes:
    if host is None:
        if not http10:
            raise BadHead(HeadFault.HOST)
        return authority or b""
    if not host or len(host) > 255 + 6 or host.translate(None, _HOST):
        raise BadHead(HeadFault.HOST)
    return authority or host
