"""Reads the provider's users and key from where an operator keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.service_kit.secret_file import secret_lines

MAX_USERS_BYTES: Final = 1024 * 1024


def read_users(named: Iterable[str], file: Path | None) -> dict[str, str]:
    """``NAME:PASSWORD`` each, and the lines of a file of the same; ``#`` starts a comment line.

    Raises:
        ConfigError: a line without a colon, a name twice, or a file that cannot be read.
    """
    users: dict[str, str] = {}
    lines = list(named)
    if file is not None:
        lines += secret_lines(file, "users-file", private=False, most=MAX_USERS_BYTES)
    for line in lines:
        name, colon, password = line.partition(":")
        if not colon or not name:
            raise ConfigError("users: NAME:PASSWORD is needed")
        if name in users:
            raise ConfigError(f"users: {name!r} is there twice")
        users[name] = password
    return users


def read_secret(file: Path, setting: str) -> str:
    """The one line of a file. Raises :class:`ConfigError` for none or more."""
    lines = secret_lines(file, setting, private=False)
    if len(lines) != 1:
        raise ConfigError(f"{setting}: {file} is empty, or has more than one line")
    return lines[0]
