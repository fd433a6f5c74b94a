"""Heads of requests, read strictly: what could be read two ways is refused (RFC 9112).

A director that reads a request otherwise than the web server behind it does can be made to smuggle a second one
(RFC 9112, 11.2). So nothing is mended here: bare CR or LF, folded lines, blanks before the colon, two lengths, a length
beside a transfer coding, and every other doubt is an error, and the head that goes on is built anew from what was
understood.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from coatcheck.director.http_framing import BadHead, HeadFault, body_length, connection_options

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Field values hold visible ASCII, blanks, tabs and obs-text (RFC 9110, 5.5); CR and LF are counted apart.
_CONTROLS: Final = bytes(set(range(0x20)) - {0x09, 0x0A, 0x0D}) + b"\x7f"
_TARGET: Final = bytes(set(range(0x21, 0x7F)) - {ord("#")})
_HOST_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_~:[]%"
_MAX_METHOD_BYTES: Final = 32
_MAX_HOST_BYTES: Final = 261
_MAX_KEPT_BLOCK_BYTES: Final = 4096
_MAX_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 256


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

# The quick way through a header block: see _quick_fields. Names with "_" may be twins of others and are not quick.
_QUICK_HEADERS: Final = 64
_QUICK_BLOCK: Final = re.compile(
    rb"HTTP/1\.1(?:\r\n[!#$%&'*+\-.^`|~0-9A-Za-z]{1,256}+:[\t\x20-\x7e\x80-\xff]*+){0,64}+"
)
_QUICK_SPECIAL: Final = re.compile(
    # The look-ahead spares most lines the alternatives.
    rb"\r\n(?=[hcteufkpx])(host|cookie|connection|content-length|transfer-encoding|expect|upgrade(?=:)|forwarded"
    rb"|keep-alive|te(?=:)|trailer|http2-settings|proxy|x-session-|x-forwarded-|x-real-ip)([^\r]*+)",
    re.IGNORECASE,
)
_QUICK_NAMES: Final = frozenset({b"host", b"cookie", b"connection", b"content-length"})
_COLON: Final = 0x3A

# Names as they stood on the wire, with the colon, to what they mean: a name is looked at once. Bounded: when full,
# further names are looked at each time.
_request_names: dict[bytes, int] = {}


class RequestFields(msgspec.Struct, gc=False):
    """The version and the headers of a request, which can be read in one way only."""

    host: bytes
    lines: bytes
    """The header lines that go on as they are, each ended by CRLF."""
    length: int
    """Of the body in bytes; or :data:`~coatcheck.director.http_framing.CHUNKED`."""
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
            fields = None if authority is not None or self._max_headers < _QUICK_HEADERS else _quick_fields(block)
            if fields is None:
                fields = parse_request_fields(block, self._max_headers, has_authority=authority is not None)
            if authority is None and len(block) <= _MAX_KEPT_BLOCK_BYTES:
                self._block, self._fields = block, fields
        if authority is not None:
            # The target's authority overrules the Host header (RFC 9112, 3.2.2).
            fields = msgspec.structs.replace(fields, host=authority)
        return RequestHead(method, target, fields)


def _quick_fields(block: bytes) -> RequestFields | None:
    """Read the common header block in two passes of a compiled pattern, at half the cost of reading it line by line.

    It takes only what is beyond doubt: HTTP/1.1, good names and values, and of the headers that mean something no
    others than one Host, Cookie, Connection and Content-Length. All else is ``None``, and is judged line by line.
    """
    if _QUICK_BLOCK.fullmatch(block) is None:
        return None
    parts = _QUICK_SPECIAL.split(block)
    special: dict[bytes, bytes] = {}
    for name, value in zip(parts[1::3], parts[2::3], strict=True):
        lower = name.lower()
        # The pattern also stops at longer names that begin alike.
        if lower not in _QUICK_NAMES or lower in special or value[0] != _COLON:
            return None
        special[lower] = value[1:].strip(b" \t")
    connection = special.get(b"connection", b"keep-alive").lower()
    if connection != b"keep-alive" and connection != b"close":
        return None
    length = special.get(b"content-length")
    body = body_length(length, None, http10=False) if length is not None else 0
    cookie = special.get(b"cookie", b"")
    parts[0] = parts[0][len(b"HTTP/1.1") :]
    lines = b"".join(parts[::3])
    if cookie:
        lines += b"\r\nCookie: " + cookie
    return RequestFields(
        _host(special.get(b"host"), is_needed=True),
        lines[2:] + b"\r\n" if lines else b"",
        body,
        length is not None,
        False,
        connection != b"close",
        cookie,
        False,
        False,
        b"",
    )


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
    keep_alive, upgrade = (not http10, False) if options is None else connection_options(options, http10, kept)
    expect = get(_EXPECT)
    if expect is not None and expect.lower() != b"100-continue":
        raise BadHead(HeadFault.EXPECTATION, 417)
    length = body_length(get(_LENGTH), get(_TRANSFER_CODING), http10)
    forwarding = get(_FORWARDING)
    return RequestFields(
        _host(get(_HOST), is_needed=not http10 and not has_authority),
        b"\r\n".join(kept) + b"\r\n" if kept else b"",
        length,
        _LENGTH in special,
        http10,
        keep_alive,
        get(_COOKIE, b""),
        upgrade and not http10 and length == 0 and get(_UPGRADE, b"").lower() == b"websocket",
        expect is not None and not http10 and length != 0,
        forwarding + b"\r\n" if forwarding else b"",
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


def _host(host: bytes | None, *, is_needed: bool) -> bytes:
    if host is None and not is_needed:
        return b""
    if not host or len(host) > _MAX_HOST_BYTES or host.translate(None, _HOST_CHARACTERS):
        raise BadHead(HeadFault.HOST)
    return host
