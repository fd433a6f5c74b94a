"""Reads the provider's users and key from where an operator keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError

MAX_FILE_BYTES: Final = 1024 * 1024


def read_users(named: Iterable[str], file: Path | None) -> dict[str, str]:
    """``NAME:PASSWORD`` each, and the lines of a file of the same; ``#`` starts a comment line.

    Raises:
        ConfigError: a line without a colon, a name twice, or a file that cannot be read.
    """
    users: dict[str, str] = {}
    lines = list(named)
    if file is not None:
        text = read_secret_file(file, "users-file")
        lines += [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        name, colon, password = line.partition(":")
        if not colon or not name:
            raise ConfigError("users: NAME:PASSWORD is needed")
        if name in users:
            raise ConfigError(f"users: {name!r} is there twice")
        users[name] = password
    return users


def read_secret_file(file: Path, setting: str) -> str:
    """The text of a small file. Raises :class:`ConfigError` if it cannot be read."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{setting}: {file} is larger than {MAX_FILE_BYTES} bytes")
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: cannot read {file}: {error}") from None
