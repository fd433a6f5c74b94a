"""Where a store is, from its URL: one parser for session servers and token pools.

``SCHEME://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE][?OPTION=VALUE]``, ``unix:///SOCKET``,
``coatcheck://[:PASSWORD@]/SOCKET``, ``sqlite:///FILE``
(four slashes for an absolute path, as SQLAlchemy reads it) and ``memory://``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

TLS_OF: Final[Mapping[str, bool]] = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
"""The schemes of Redis and Valkey servers, and whether they mean TLS."""

DEFAULT_PORT: Final = 6379
"""Of a Redis, a Valkey or a session server of ours, where the URL names none."""

REDIS: Final = (*TLS_OF, "unix")
_EXAMPLES: Final = {"unix": "unix:///run/valkey.sock", "sqlite": "sqlite:///FILE, or sqlite:////DIRECTORY/FILE"}
_MAX_DATABASE_DIGITS: Final = 6
_MAX_CHARACTERS: Final = 4096


class StoreUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A URL in its parts; ``str`` and ``repr`` show no user, no password and no option."""

    scheme: str
    host: str = ""
    port: int | None = None
    path: str = ""
    """Of a socket or a file."""
    username: str = ""
    password: str = ""
    database: int = 0

    def __str__(self) -> str:
        if self.scheme in ("unix", "sqlite") or self.path:
            return f"{self.scheme}://{'/' if self.scheme == 'sqlite' else ''}{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port else "")

    def __repr__(self) -> str:
        return f"StoreUrl({str(self)!r})"


def parse_store_url(url: object, schemes: Iterable[str], options: Iterable[str] = ("db",)) -> StoreUrl:
    """Read a URL of one of the schemes, with no other options than these.

    Raises:
        ValueError: it is none; the one line never repeats the URL, because it may hold a password.
    """
    allowed = tuple(schemes)
    parts = _split(url)
    if parts.scheme not in allowed:
        raise ValueError("the URL begins with one of " + ", ".join(f"{scheme}://" for scheme in allowed))
    unknown = sorted(set(parse_qs(parts.query, keep_blank_values=True)) - set(options))
    if unknown or parts.fragment:
        known = ", ".join(options) or "none"
        raise ValueError(f"the URL has an option that is not known here (known: {known})")
    if parts.scheme == "memory":
        if parts.netloc or parts.path.strip("/"):
            raise ValueError("write memory:// alone")
        return StoreUrl(scheme="memory")
    if parts.scheme == "sqlite":
        return StoreUrl(scheme="sqlite", path=_file(parts))
    is_socket = parts.scheme == "unix" or bool(
        parts.scheme == "coatcheck" and not parts.hostname and parts.path.strip("/")
    )
    found = StoreUrl(
        scheme=parts.scheme,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=_database(parts) if parts.scheme == "unix" or not is_socket else 0,
    )
    if is_socket:
        path = unquote(parts.path)
        if not path.strip("/") or "\0" in path or parts.hostname:
            raise ValueError(f"unix:// needs the path of a socket, as {_EXAMPLES['unix']}")
        return msgspec.structs.replace(found, path=path)
    if not parts.hostname or parts.port == 0:
        raise ValueError(f"the host is missing; write {parts.scheme}://[:PASSWORD@]HOST[:PORT]")
    return msgspec.structs.replace(found, host=parts.hostname, port=parts.port)


def _split(url: object) -> SplitResult:
    if not isinstance(url, str) or len(url) > _MAX_CHARACTERS:
        raise ValueError(f"write a URL, of at most {_MAX_CHARACTERS} characters")
    # urlsplit drops some control characters without a word.
    if any(ord(character) <= 32 or ord(character) == 127 for character in url):
        raise ValueError("a URL has no spaces and no control characters; write %20 for a space")
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        # The library's own words may repeat the password.
        raise ValueError("the host or the port is malformed; write SCHEME://[:PASSWORD@]HOST[:PORT]") from None
    return parts


def _file(parts: SplitResult) -> str:
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or not path.strip("/") or "\0" in path:
        raise ValueError(f"sqlite:// needs a file, as {_EXAMPLES['sqlite']}")
    return path[1:]


def _database(parts: SplitResult) -> int:
    texts = parse_qs(parts.query, keep_blank_values=True).get("db", [])
    if parts.scheme != "unix" and parts.path.strip("/"):
        texts = [*texts, parts.path.strip("/")]
    if len(set(texts)) > 1:
        raise ValueError("two different databases are given")
    if not texts:
        return 0
    if not (texts[0].isascii() and texts[0].isdigit() and len(texts[0]) <= _MAX_DATABASE_DIGITS):
        raise ValueError("the database must be a number, as redis://HOST/0")
    return int(texts[0])
