"""Where a director listens, what it serves, and how it treats its sockets; its other bounds are those of its rules."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec

from coatcheck.director.rules.limits import Limits, trusted_networks
from coatcheck.errors import ConfigError
from coatcheck.peers.dial import Door

_TAG: Final = re.compile(r"[A-Za-z0-9._~!-]{1,128}")
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_MAY_BE_ZERO: Final = frozenset({"port", "hsts_s", "resend_after_s", "min_body_rate", "min_read_rate"})
_MOST_SENDS: Final = 2
"""Of an idempotent request. It has the effect of one (RFC 9110, 9.2.2), and still costs each server its work."""


class WebServer(msgspec.Struct, frozen=True):
    """One web server: its name, its address, and the opaque tag that the route cookie carries for it.

    The address is a host and a port, or the path of a Unix socket, which must be our own user's. With a
    ``credential`` no request is sent over TCP before both ends have proved that they know it.
    """

    name: str
    host: str
    port: int
    tag: str
    path: str = ""
    credential: str = ""

    @property
    def door(self) -> Door:
        """Where, and as whom, it is reached."""
        return Door(self.name, path=self.path, host=self.host, port=self.port, credential=self.credential)

    def __repr__(self) -> str:
        return f"WebServer({self.name!r}, {self.door})"


AroundHandshake = Callable[[socket.socket], AbstractAsyncContextManager[None]]
"""Entered when a client has connected, before anything of it is read, and left when its handshake is over.

It may look at what the client has sent, and must leave it where it is. What it takes counts as the handshake's time."""


class DirectorOptions(Limits, frozen=True, kw_only=True):
    """What the director serves, and within which bounds; times in seconds, sizes in bytes."""

    servers: tuple[WebServer, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    tls: ssl.SSLContext | None = None
    around_handshake: AroundHandshake | None = None
    backlog: int = 4096
    health_path: str = "/.well-known/coatcheck/health"
    buffer_bytes: int = 64 * 1024
    """High-water mark of each connection's write buffer; beyond it the other side is not read."""
    descriptors_per_connection: int = 2
    """How many a client's connection may need: its own, and one to a web server."""
    tick_s: float = 0.1
    """How often deadlines are looked at, and so how exact the time-outs are."""


def checked_options(options: DirectorOptions) -> DirectorOptions:
    """The options themselves, if they make sense.

    Raises ConfigError with one line that names the setting.
    """
    if not options.servers:
        raise ConfigError("director: servers is empty; name at least one web server")
    for what, values in (("name", [s.name for s in options.servers]), ("tag", [s.tag for s in options.servers])):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ConfigError(f"director: two web servers have the {what} {twice[0]!r}")
    for server in options.servers:
        if not _TAG.fullmatch(server.tag):
            raise ConfigError(f"director: the tag of {server.name!r} is not 1 to 128 cookie-safe characters")
        if not server.path and not 0 < server.port < 65536:
            raise ConfigError(f"director: the port of {server.name!r} is not between 1 and 65535")
    if not _COOKIE_NAME.fullmatch(options.route_cookie):
        raise ConfigError(f"director: route_cookie {options.route_cookie!r} is no cookie name")
    if not re.fullmatch(r"/[!-~]*", options.health_path):
        raise ConfigError(f"director: health_path {options.health_path!r} is no path")
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if not isinstance(value, int | float):
            continue
        if field.name not in _MAY_BE_ZERO and value <= 0:
            raise ConfigError(f"director: {field.name} is {value}; it must be above 0")
        if value < 0:
            raise ConfigError(f"director: {field.name} is {value}; it must be 0 or above")
    if options.max_sends > _MOST_SENDS:
        raise ConfigError(f"director: max_sends is {options.max_sends}; it must be 1 or {_MOST_SENDS}")
    options.check_patience()
    trusted_networks(options)
    return options
