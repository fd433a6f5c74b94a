"""The address of an outside session server, as given in a setting."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.url import DEFAULT_PORT, REDIS, StoreUrl, parse_store_url

OUTSIDE: Final = (*REDIS, "coatcheck", "sqlite")
"""What several processes can share."""

SCHEMES: Final = (*OUTSIDE, "memory")


class SessionServerAddress(msgspec.Struct, frozen=True):
    """One session server: ``name`` decides the placement, ``url`` may hold a password and is never shown."""

    name: str
    url: str
    proves_its_name: bool = False
    """An embedded one of this farm, which proves that it is the one of this name."""

    def __repr__(self) -> str:
        return f"SessionServerAddress(name={self.name!r})"

    @property
    def parts(self) -> StoreUrl:
        return parse_store_url(self.url, SCHEMES)


def parse_session_servers(texts: Sequence[str], schemes: Sequence[str] = OUTSIDE) -> tuple[SessionServerAddress, ...]:
    """Read ``[NAME=]URL`` each; see :func:`parse_session_server`.

    Raises:
        ConfigError: one is wrong, two have the same name, or two are the same server.
    """
    addresses = tuple(parse_session_server(text, position, schemes) for position, text in enumerate(texts, 1))
    if len({address.name for address in addresses}) != len(addresses):
        raise ConfigError("session_server: two have the same name; give each its own, as NAME=URL")
    at: dict[Hashable, str] = {}
    for address in addresses:
        if (before := at.setdefault(_place(address), address.name)) != address.name:
            raise ConfigError(
                f"session_server: {before} and {address.name} are one server, and both copies would be lost with it; "
                "name each once"
            )
    return addresses


def _place(address: SessionServerAddress) -> Hashable:
    """Where the server is: equal for two spellings of one place. Each ``memory://`` is a place of its own."""
    parts = address.parts
    if parts.scheme == "memory":
        return address.name
    if parts.path:
        return str(Path(parts.path).resolve()), parts.database
    return parts.host, parts.port or DEFAULT_PORT, parts.database


def parse_session_server(text: str, position: int, schemes: Sequence[str] = OUTSIDE) -> SessionServerAddress:
    """Read ``[NAME=]URL``; without a name it is ``session-POSITION``.

    Raises:
        ConfigError: unknown scheme, no host, or a bad port. The line never holds the password.
    """
    shown = f"session_server: number {position}"
    if not isinstance(text, str):
        raise ConfigError(f"{shown}: write [NAME=]URL")
    name, equals, url = text.partition("=")
    if not equals or "://" in name:
        name, url = f"session-{position}", text
    if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ConfigError(f"{shown}: the name before = is 1 to 64 letters, digits, - _ or .")
    try:
        parts = parse_store_url(url, schemes)
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from None
    if parts.scheme == "coatcheck" and not parts.path and parts.port is None:
        raise ConfigError(f"{shown}: the port is missing; write coatcheck://:PASSWORD@HOST:PORT")
    return SessionServerAddress(name, url)


def shown_url(url: str) -> str:
    """The URL without user and password, for logs and ``status``."""
    return str(parse_store_url(url, SCHEMES))
