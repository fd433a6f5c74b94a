"""A line of a process's log, on its way to the supervisor, which writes them all.

What an app prints is a line as well, and may be anything. So records of the log come behind a mark that only this
process was told: nobody who makes an app print something can make up a record.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

import msgspec

MAX_LINE_BYTES: Final = 16_384
"""Of one line of a process; what is longer is cut."""
_MAX_MESSAGE: Final = 1500
_MAX_EXCEPTION: Final = 1000
"""Characters that are left where a record is too long: six bytes each, at most, in JSON."""


class LogOrders(msgspec.Struct, frozen=True):
    """What a process is told about its log. ``level``: the least that is logged, by its name in lower case; ``mark`` is
    empty where the log is text."""

    level: str = "info"
    mark: str = ""


class LogRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line in the format ``json``; ``time`` is UTC (RFC 3339)."""

    time: str
    level: str
    process: str
    message: str
    logger: str = ""
    event: str = ""
    exception: str = ""


class MarkedFormatter(logging.Formatter):
    """Writes each record as one line of JSON behind the mark."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self._mark = mark

    def format(self, record: logging.LogRecord) -> str:
        found = LogRecord(
            time=utc(record.created),
            level=record.levelname.lower(),
            process="",
            message=record.getMessage(),
            logger=record.name,
            event=getattr(record, "event", ""),
            exception=self.formatException(record.exc_info) if record.exc_info else "",
        )
        line = self._mark + encode_record(found)
        if len(line.encode(errors="replace")) <= MAX_LINE_BYTES:
            return line
        message, exception = found.message[:_MAX_MESSAGE], found.exception[-_MAX_EXCEPTION:]
        return self._mark + encode_record(msgspec.structs.replace(found, message=message, exception=exception))


def encode_record(record: LogRecord) -> str:
    """One line of JSON. What no UTF-8 has (half a surrogate pair, say) is written as a question mark."""
    try:
        return msgspec.json.encode(record).decode()
    except UnicodeEncodeError:
        texts = {
            name: value.encode(errors="replace").decode() for name, value in msgspec.structs.asdict(record).items()
        }
        return msgspec.json.encode(LogRecord(**texts)).decode()


def read_line(line: str, mark: str) -> tuple[str, LogRecord | None]:
    """What was printed, and the record behind the mark, if there is one.

    A record stands behind what an app has printed without an end of the line.
    """
    if not mark:
        return line, None
    printed, found, text = line.partition(mark)
    if not found:
        return line, None
    try:
        return printed, msgspec.json.decode(text, type=LogRecord)
    except msgspec.DecodeError:
        return printed + text, None  # the mark is not shown


def utc(unix_s: float) -> str:
    """``2026-11-21T18:20:07.412Z``."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
