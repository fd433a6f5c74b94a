"""The address of an outside session server, as given in a setting."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from coatcheck.errors import ConfigError
from coatcheck.farm.settings import SessionServerAddress

SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys", "unix", "coatcheck", "sqlite")
_FILES: Final = ("sqlite", "unix")


def parse_session_server(text: str, position: int) -> SessionServerAddress:
    """Read ``[NAME=]URL``; without a name it is ``session-POSITION``.

    Raises:
        ConfigError: unknown scheme, no host, or a bad port. The line never holds the password.
    """
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        name, url = f"session-{position}", text
    shown = f"session_server: number {position}"
    if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ConfigError(f"{shown}: the name before = is 1 to 64 letters, digits, - _ or .")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}; write redis://[:PASSWORD@]HOST[:PORT]") from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{shown}: the URL begins with one of " + ", ".join(f"{s}://" for s in SCHEMES))
    if parts.scheme in _FILES:
        if not parts.path.strip("/"):
            raise ConfigError(f"{shown}: name the file, as {parts.scheme}:///FILE")
    elif not host or port == 0:
        raise ConfigError(f"{shown}: write {parts.scheme}://[:PASSWORD@]HOST[:PORT]")
    return SessionServerAddress(name, url)


def shown_url(url: str) -> str:
    """The URL without user and password, for logs and ``status``."""
    parts = urlsplit(url)
    if parts.scheme in _FILES:
        return f"{parts.scheme}://{parts.path}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
