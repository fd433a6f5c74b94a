"""Audit records as lines of JSON in a file that stays bounded, whoever writes them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError

SUFFIX: Final = ".jsonl"
FILES: Final = 4
"""The file that is written and the older ones beside it (``.1`` is the newest of those)."""


def utc_text(unix_s: float) -> str:
    """RFC 3339, to the millisecond: ``2026-05-01T12:00:00.000Z``."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class AuditFile:
    """The file has one writer. When it is full it is renamed, and the oldest is deleted."""

    def __init__(self, path: Path, max_bytes: int, setting: str, advice: str = "") -> None:
        """Raises :class:`ConfigError`, which names the ``setting``, if the file cannot be written."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._file = RotatingFileHandler(path, maxBytes=max_bytes // FILES, backupCount=FILES - 1, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{setting}: {path}: {error.strerror}; choose another{advice}") from None

    def write(self, record: Any) -> None:
        """Write one msgspec record. A full disk is said on stderr by the logging module, and stops nobody."""
        line = json.dumps(msgspec.to_builtins(record))  # ASCII alone: a user's name steers no terminal
        self._file.handle(logging.LogRecord("coatcheck.audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._file.close()
