"""What the director tells a web server about the client, and which paths it keeps to itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from coatcheck.director.rules.admission import Network, client_behind, is_within, unmapped
from coatcheck.director.rules.http_framing import CHUNKED
from coatcheck.director.rules.request_head import RequestFields

# A gateway must name itself to the server behind it (RFC 9110, 7.6.3) and may to the client, where it would only cost
# bytes and tell strangers what stands here: so requests carry Via and responses do not.
_VIA: Final = b"Via: 1.1 coatcheck\r\n"
_RESERVED: Final = b"/.well-known/coatcheck"
_COOKIE_VALUE: Final = re.compile(rb'\s*"?([^;"\s]*)')


class ClientAddress:
    """Who is at the other end of one connection, as told to the web servers."""

    __slots__ = ("_block", "_block_host", "_networks", "_node", "_peer", "_proto", "is_trusted", "peer")

    def __init__(self, peer: str, *, tls: bool, trusted: tuple[Network, ...]) -> None:
        peer = unmapped(peer)
        self.peer = peer
        self._peer = peer.encode("ascii", "replace")
        self._node = b'"[%s]"' % self._peer if b":" in self._peer else self._peer
        self._proto = b"https" if tls else b"http"
        self.is_trusted = bool(trusted) and is_within(peer, trusted)
        """Whether it is a proxy whose words are believed."""
        self._networks = trusted
        self._block_host: bytes | None = None
        self._block = b""

    def client_behind(self, fields: RequestFields) -> str | None:
        """The client of a request that came through a trusted proxy, as far as that one says."""
        if not self.is_trusted or not fields.forwarding:
            return None
        return client_behind(self._told(fields).get(b"x-forwarded-for", []), self._networks)

    def block(self, fields: RequestFields) -> bytes:
        """The forwarding lines of one request, each ended by CRLF.

        What the client itself said there is dropped, unless it is a trusted proxy: then it is extended
        (RFC 7239, 4).
        """
        if self.is_trusted and fields.forwarding:
            return self._extended(fields)
        if fields.host != self._block_host:
            self._block_host = fields.host
            self._block = (
                b"X-Forwarded-For: %s\r\nX-Forwarded-Proto: %s\r\nX-Forwarded-Host: %s\r\n"
                b'Forwarded: for=%s;host="%s";proto=%s\r\n%s'
                % (self._peer, self._proto, fields.host, self._node, fields.host, self._proto, _VIA)
            )
        return self._block

    def _told(self, fields: RequestFields) -> dict[bytes, list[bytes]]:
        told: dict[bytes, list[bytes]] = {}
        for line in fields.forwarding.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name:
                told.setdefault(name.lower(), []).append(value.strip(b" \t"))
        return told

    def _extended(self, fields: RequestFields) -> bytes:
        told = self._told(fields)
        chain = b", ".join([*told.get(b"x-forwarded-for", []), self._peer])
        hop = b'for=%s;host="%s";proto=%s' % (self._node, fields.host, self._proto)
        return b"X-Forwarded-For: %s\r\nX-Forwarded-Proto: %s\r\nX-Forwarded-Host: %s\r\nForwarded: %s\r\n%s" % (
            chain,
            told.get(b"x-forwarded-proto", [self._proto])[-1],
            told.get(b"x-forwarded-host", [fields.host])[-1],
            b", ".join([*told.get(b"forwarded", []), hop]),
            _VIA,
        )


def request_tail(fields: RequestFields, client: ClientAddress) -> bytes:
    """A request's head behind the target, as a web server gets it, but for the cookie and the empty line.

    It is made of what was understood and nothing else.
    """
    framing = b""
    if fields.length == CHUNKED:
        framing = b"Transfer-Encoding: chunked\r\n"
    elif fields.has_length:
        framing = b"Content-Length: %d\r\n" % fields.length
    if fields.expects_continue:
        framing += b"Expect: 100-continue\r\n"
    if fields.websocket:
        framing += b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    vouched = fields.vouched if client.is_trusted else b""
    return b" HTTP/1.1\r\nHost: %s\r\n%s%s%s%s" % (fields.host, fields.lines, vouched, client.block(fields), framing)


def is_reserved(target: bytes) -> bool:
    """Whether a request target is under ``/.well-known/coatcheck/``, however it is written.

    Those paths are for the farm alone; web servers decode, so what they would take for one counts as one.
    """
    if b"%" not in target and b"coatcheck" not in target.lower():
        return False
    path = target.partition(b"?")[0]
    for _ in range(2):
        path = unquote_to_bytes(path)
    parts: list[bytes] = []
    for part in path.lower().replace(b"\\", b"/").split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    plain = b"/" + b"/".join(parts)
    return plain == _RESERVED or plain.startswith(_RESERVED + b"/")


def route_tag_reader(cookie_name: str, is_known: Callable[[bytes], bool]) -> Callable[[bytes], bytes | None]:
    """A function that finds the tag of a known web server in the value of a Cookie header."""
    sought = cookie_name.encode("ascii") + b"="
    size = len(sought)

    def read(cookies: bytes) -> bytes | None:
        # Searched for by its name and not cookie by cookie: what stands before it is looked at once it is found.
        at = cookies.find(sought)
        while at >= 0:
            before = cookies[cookies.rfind(b";", 0, at) + 1 : at].lstrip(b" \t") if at else b""
            if not before or before == b"__Host-":
                value = _COOKIE_VALUE.match(cookies, at + size)
                tag = b"" if value is None else value[1]
                if is_known(tag):
                    return tag
            at = cookies.find(sought, at + size)
        return None

    return read
