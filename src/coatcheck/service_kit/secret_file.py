"""Files of secrets, a line each: bearer tokens and keys."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError

MAX_FILE_BYTES: Final = 64 * 1024


def secret_lines(file: Path, setting: str, *, private: bool = True, most: int = MAX_FILE_BYTES) -> list[str]:
    """The lines that are neither empty nor comments (``#``). ``private``: only its owner may be able to read it.

    Raises:
        ConfigError: it cannot be read, is too large, or others than its owner can read it.
    """
    try:
        found = file.stat()
        if private and stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(f"{setting}: others can read {file}; run chmod 600 on it")
        if found.st_size > most:
            raise ConfigError(f"{setting}: {file} is larger than {most} bytes")
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: cannot read {file}: it is no text") from None
    return [line for line in lines if line and not line.startswith("#")]
