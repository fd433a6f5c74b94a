"""Where a networked store is, from a URL: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``."""

from __future__ import annotations

import ssl
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

from coatcheck.errors import ConfigError

DEFAULT_PORT: Final = 6379
_TCP_SCHEMES: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}


class Address(msgspec.Struct, frozen=True):
    """A TCP address or the path of a Unix socket, with its credentials; ``repr`` shows no password."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""
    username: str = ""
    password: str = ""
    db: int = 0
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")

    def __repr__(self) -> str:
        return f"Address({str(self)!r}, db={self.db}, tls={self.tls is not None})"


def parse_url(url: str, tls: ssl.SSLContext | None = None) -> Address:
    """Parse ``scheme://[user[:password]@]host[:port][/db]`` or ``unix:///path``, both with ``?db=`` if wanted.

    A TLS scheme without a context uses the system's certificate authorities. Raises :class:`ConfigError`,
    whose text never repeats the URL, because it may hold a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as wrong:
        raise ConfigError(f"store URL: {_without_credentials(str(wrong))}") from None
    base = Address(
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        db=_database(parts),
    )
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path:
            raise ConfigError("store URL: unix:// needs the path of a socket, as in unix:///run/valkey.sock")
        return msgspec.structs.replace(base, path=path)
    if parts.scheme not in _TCP_SCHEMES:
        raise ConfigError("store URL: must begin with redis://, rediss://, valkey://, valkeys:// or unix://")
    if not parts.hostname:
        raise ConfigError("store URL: the host is missing, as in valkey://127.0.0.1:6379")
    if _TCP_SCHEMES[parts.scheme]:
        tls = tls or ssl.create_default_context()
    elif tls is not None:
        raise ConfigError("store URL: a TLS context was given, so the URL must begin with rediss:// or valkeys://")
    return msgspec.structs.replace(base, host=parts.hostname, port=port or DEFAULT_PORT, tls=tls)


def _database(parts: SplitResult) -> int:
    query = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(set(query) - {"db"})
    if unknown:
        raise ConfigError(f"store URL: unknown option {unknown[0]!r}; only db is known")
    texts = query.get("db", [])
    if parts.scheme != "unix" and parts.path.strip("/"):
        texts = [*texts, parts.path.strip("/")]
    if len(set(texts)) > 1:
        raise ConfigError("store URL: two different databases are given")
    if not texts:
        return 0
    if not (texts[0].isascii() and texts[0].isdigit() and len(texts[0]) <= 6):
        raise ConfigError("store URL: the database must be a number")
    return int(texts[0])


def _without_credentials(text: str) -> str:
    return text.rpartition("@")[2] if "@" in text else text
