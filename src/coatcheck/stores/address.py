"""Where a networked store is, from a URL: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``."""

from __future__ import annotations

import ssl

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.host_port import format_host_port
from coatcheck.url import DEFAULT_PORT, REDIS, TLS_OF, parse_store_url


class StoreAddress(msgspec.Struct, frozen=True):
    """A TCP address or the path of a Unix socket, with its credentials; ``repr`` shows no password."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    username: str = ""
    password: str = ""
    db: int = 0
    tls: ssl.SSLContext | None = None
    tls_name: str = ""
    """Whose certificate is demanded; empty: that of ``host``."""
    ours: bool = False
    """A session server of coatcheck's own: the password is proved by both ends and never sent; and a Unix socket must
    be our own user's."""
    name: str = ""
    """Whose proof is taken: that of the server of this name; empty: any server's that knows the password."""

    def __str__(self) -> str:
        return self.path or format_host_port(self.host, self.port)

    def __repr__(self) -> str:
        return f"StoreAddress({str(self)!r}, db={self.db}, tls={self.tls is not None})"


def parse_url(url: str, tls: ssl.SSLContext | None = None) -> StoreAddress:
    """Parse ``scheme://[user[:password]@]host[:port][/db]`` or ``unix:///path``, both with ``?db=`` if wanted.

    A TLS scheme without a context uses the system's certificate authorities. Raises :class:`ConfigError`,
    whose text never repeats the URL, because it may hold a password.
    """
    try:
        parts = parse_store_url(url, REDIS)
    except ValueError as error:
        raise ConfigError(f"store URL: {error}") from None
    if TLS_OF.get(parts.scheme):
        tls = tls or ssl.create_default_context()
    elif tls is not None and parts.scheme != "unix":
        raise ConfigError("store URL: a TLS context was given, so the URL must begin with rediss:// or valkeys://")
    return StoreAddress(
        host=parts.host,
        port=parts.port or DEFAULT_PORT,
        path=parts.path,
        username=parts.username,
        password=parts.password,
        db=parts.database,
        tls=None if parts.scheme == "unix" else tls,
    )
