"""Heads of requests, read strictly: what could be read two ways is refused (RFC 9112).

A director that reads a request otherwise than the web server behind it does can be made to smuggle a second one
(RFC 9112, 11.2). So nothing is mended here: bare CR or LF, folded lines, blanks before the colon, two lengths, a length
beside a transfer coding, and every other doubt is an error, and the head that goes on is built anew from what was
understood.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

import msgspec

from coatcheck.director.rules.http_framing import BadHead, HeadFault, body_length, connection_options

_TOKEN: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Field values hold visible ASCII, blanks, tabs and obs-text (RFC 9110, 5.5); CR and LF are counted apart.
_CONTROLS: Final = bytes(set(range(0x20)) - {0x09, 0x0A, 0x0D}) + b"\x7f"
_NOT_IN_VALUES: Final = _CONTROLS + b"\r\n"
_TARGET: Final = bytes(set(range(0x21, 0x7F)) - {ord("#")})
# A name or an IPv4 address, or an IPv6 address in brackets; and a port (RFC 9110, 7.2; RFC 3986, 3.2.2).
_HOST_FORM: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+)(?::([0-9]{0,5}))?")
NO_HOST: Final = b"unknown.invalid"
"""What a web server is told where HTTP/1.0 names no host: a name of nothing (RFC 6761, 6.4), for with none at all it
would put its own inner address in its links."""
_MAX_PORT: Final = 65535
_MAX_METHOD_BYTES: Final = 32
_MAX_HOST_BYTES: Final = 261
_MAX_KNOWN_BLOCK_BYTES: Final = 4096
_MAX_KNOWN_BLOCKS: Final = 512
_SLASH: Final = 0x2F
_MAX_NAMES: Final = 1024
_MAX_NAME_BYTES: Final = 256


# What a request's header means to the director.
(
    _PLAIN, _DROPPED, _HOST, _LENGTH, _TRANSFER_CODING, _CONNECTION, _COOKIE, _EXPECT, _UPGRADE, _FORWARDING, _VOUCHED,
) = range(11)  # fmt: skip
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
    # What proxies say about the client, the connection or the URL, and apps believe: only a trusted one may say it.
    **dict.fromkeys(
        (
            b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-proxyuser-ip", b"true-client-ip", b"client-ip",
            b"cf-connecting-ip", b"cf-connecting-ipv6", b"fastly-client-ip", b"fly-client-ip", b"x-azure-clientip",
            b"x-appengine-user-ip", b"x-envoy-external-address", b"x-host", b"x-http-host-override", b"x-scheme",
            b"x-url-scheme", b"x-https", b"front-end-https", b"x-arr-ssl", b"x-rewrite-url", b"x-override-url",
            b"remote-user", b"remote-addr", b"x-remote-user", b"x-user", b"x-authenticated-user", b"x-webauth-user",
            b"x-client-verify", b"x-client-dn", b"client-cert", b"client-cert-chain", b"x-client-cert",
        ),
        _VOUCHED,
    ),
}  # fmt: skip
_VOUCHED_PREFIXES: Final = (
    b"x-forwarded-", b"x-original-", b"x-auth-request-", b"x-ssl-", b"ssl-client-", b"x-remote-", b"x-goog-iap-",
    b"x-goog-authenticated-", b"x-ms-client-principal", b"x-amzn-oidc-", b"tailscale-user-",
)  # fmt: skip
_INTERNAL_PREFIX: Final = b"x-session-"
_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"})

# Names as they stood on the wire, with the colon, to what they mean: a name is looked at once. Bounded: when full,
# further names are looked at each time.
_request_names: dict[bytes, int] = {}


class RequestFields(msgspec.Struct, gc=False):
    """The version and the headers of a request, which can be read in one way only."""

    host: bytes
    lines: bytes
    """The header lines that go on as they are, each ended by CRLF."""
    length: int
    """Of the body in bytes; or :data:`~coatcheck.director.rules.http_framing.CHUNKED`."""
    has_length: bool
    http10: bool
    keep_alive: bool
    cookies: bytes
    """Those among ``lines``, joined."""
    websocket: bool
    expects_continue: bool
    forwarding: bytes
    """The client's own forwarding lines, each ended by CRLF: to be believed only from a trusted proxy."""
    vouched: bytes
    """Its other lines that only a trusted proxy may say, each ended by CRLF."""
    block: bytes | None = None
    """The very bytes that say all this in any request, if any do: those behind the target, but for a cookie."""


class RequestHead(msgspec.Struct, gc=False):
    """A request head."""

    method: bytes
    target: bytes
    """In origin form, or ``*``."""
    fields: RequestFields
    cookies: bytes
    """What the Cookie header says; it goes on behind ``fields.lines`` unless it is one of them."""


class RequestReader:
    """Reads the heads of requests (RFC 9112, 2 to 6; RFC 9110, 7).

    A browser says the same about itself in request after request, and so do all browsers of one kind; but its cookie
    is its own. So what was understood of a header block without its cookie is remembered, by the block's very bytes,
    and found again at a tenth of the cost of reading it.
    """

    __slots__ = ("_known", "_max_headers")

    def __init__(self, max_headers: int) -> None:
        self._max_headers = max_headers
        # Bounded by _MAX_KNOWN_BLOCKS times _MAX_KNOWN_BLOCK_BYTES; the oldest leaves first.
        self._known: dict[bytes, RequestFields] = {}

    def read(self, head: bytes, before: RequestHead | None = None) -> RequestHead:
        """Read a head, without the empty line that ends it; ``before``: one that came from the same client.

        Raises BadHead with the status to answer.
        """
        first, second = head.find(b" "), -1
        if first > 0:
            second = head.find(b" ", first + 1)
        if second < 0:
            raise BadHead(HeadFault.REQUEST_LINE)
        method, target = head[:first], head[first + 1 : second]
        if method not in _METHODS:
            _check_method(method)
        if not target or target.translate(None, _TARGET):
            raise BadHead(HeadFault.TARGET)
        if target[0] != _SLASH and not (target == b"*" and method == b"OPTIONS"):
            target, authority = _absolute_form(target)
            fields = parse_request_fields(head[second + 1 :], self._max_headers, has_authority=True)
            # The target's authority overrules the Host header (RFC 9112, 3.2.2).
            fields = msgspec.structs.replace(fields, host=authority)
            return RequestHead(method, target, fields, fields.cookies)
        # Browsers say it last, or nearly so.
        cookie = head.rfind(b"\r\nCookie: ", second)
        if cookie < 0:
            block = head[second + 1 :]
            # To compare costs a tenth of a look-up, which has to read all of it for its hash.
            if before is not None and before.fields.block == block:
                return RequestHead(method, target, before.fields, before.fields.cookies)
            fields = self._fields(block)
            return RequestHead(method, target, fields, fields.cookies)
        end = head.find(b"\r", cookie + 2)
        if end < 0:
            end = len(head)
        cookies = head[cookie + 10 : end]
        block = head[second + 1 : cookie] + head[end:]
        is_good = False
        if before is not None and before.fields.block == block:
            fields = before.fields
            is_good = cookies == before.cookies
        else:
            fields = self._fields(block)
        if fields.cookies or not (is_good or len(cookies.translate(None, _NOT_IN_VALUES)) == len(cookies)):
            # A second cookie, or a bad one: to be judged as a whole.
            fields = parse_request_fields(head[second + 1 :], self._max_headers, has_authority=False)
            cookies = fields.cookies
        return RequestHead(method, target, fields, cookies)

    def _fields(self, block: bytes) -> RequestFields:
        fields = self._known.get(block)
        if fields is None:
            fields = parse_request_fields(block, self._max_headers, has_authority=False)
            fields.block = block
            if len(block) <= _MAX_KNOWN_BLOCK_BYTES:
                if len(self._known) >= _MAX_KNOWN_BLOCKS:
                    del self._known[next(iter(self._known))]
                self._known[block] = fields
        return fields


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
            value = line if kind >= _FORWARDING else line[len(name) :].strip(b" \t")
            special[kind] = _joined(kind, special[kind], value) if kind in special else value
    get = special.get
    options = get(_CONNECTION)
    keep_alive, upgrade = (not http10, False) if options is None else connection_options(options, http10, kept)
    expect = get(_EXPECT)
    if expect is not None and expect.lower() != b"100-continue":
        raise BadHead(HeadFault.EXPECTATION, 417)
    length = body_length(get(_LENGTH), get(_TRANSFER_CODING), http10)
    forwarding, vouched = get(_FORWARDING), get(_VOUCHED)
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
        vouched + b"\r\n" if vouched else b"",
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
    if not _is_host(authority):
        raise BadHead(HeadFault.TARGET)
    return (b"/" + path if slash else b"/"), authority


def _learn(name_and_colon: bytes) -> int:
    """What a header name means. A name that is no token raises: that covers folded lines, blanks and lost colons."""
    name = name_and_colon[:-1]
    if not name or len(name) > _MAX_NAME_BYTES or name.translate(None, _TOKEN):
        raise BadHead(HeadFault.HEADER_NAME)
    lower = name.lower()
    kind = _kind_of(lower)
    # CGI, and what descends from it, takes "_" for "-": such a twin of a name that means something goes nowhere.
    twin = lower.replace(b"_", b"-")
    if twin.startswith(_INTERNAL_PREFIX) or (twin != lower and _kind_of(twin) != _PLAIN):
        kind = _DROPPED
    if len(_request_names) < _MAX_NAMES:
        _request_names[name_and_colon] = kind
    return kind


def _kind_of(lower: bytes) -> int:
    return _REQUEST_KINDS.get(lower, _VOUCHED if lower.startswith(_VOUCHED_PREFIXES) else _PLAIN)


def _joined(kind: int, first: bytes, second: bytes) -> bytes:
    """Two lines of one name, where that is allowed (RFC 9110, 5.3)."""
    if kind == _HOST:
        raise BadHead(HeadFault.HOST)
    if kind == _LENGTH:
        raise BadHead(HeadFault.LENGTH)
    if kind == _TRANSFER_CODING:
        raise BadHead(HeadFault.TRANSFER_CODING)
    separator = {_COOKIE: b"; ", _FORWARDING: b"\r\n", _VOUCHED: b"\r\n"}.get(kind, b", ")
    return first + separator + second


def _host(host: bytes | None, *, is_needed: bool) -> bytes:
    if host is None and not is_needed:
        return NO_HOST
    if host is None or not _is_host(host):
        raise BadHead(HeadFault.HOST)
    return host


def _is_host(host: bytes) -> bool:
    """Whether it is a host in the one form that every web server reads alike."""
    match = _HOST_FORM.fullmatch(host)
    if match is None or len(host) > _MAX_HOST_BYTES or int(match[2] or 0) > _MAX_PORT:
        return False
    if match[1] is None:
        return True
    try:
        ipaddress.IPv6Address(match[1].decode("ascii"))
    except ValueError:
        return False
    return True
