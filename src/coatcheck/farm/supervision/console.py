"""The farm's log: every line of every process, with its time in UTC, behind its name; coloured on a terminal."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

import msgspec

from coatcheck.farm.control.log_lines import LogRecord, encode_record, utc
from coatcheck.farm.settings.farm_settings import LogFormat

_COLOURS: Final = (36, 32, 33, 35, 34, 31, 96, 92, 93, 95, 94)
SUPERVISOR: Final = "coatcheck"


class Console:
    """Writes lines from a thread of its own, so that a reader who stopped reading cannot stop the supervisor.

    At most :attr:`MAX_LINES` wait; more are dropped and counted in a line of their own.
    """

    MAX_LINES: Final = 10_000
    CLOSE_TIMEOUT_S: Final = 1.0

    def __init__(
        self,
        stream: TextIO | None = None,
        colour: bool | None = None,
        log_format: LogFormat = "text",
        now: Callable[[], float] = time.time,
    ) -> None:
        """``now``: Unix seconds."""
        self._as_json = log_format == "json"
        self._now = now
        self._stream = stream if stream is not None else sys.stderr
        self._colour = self._stream.isatty() if colour is None else colour
        self._lines: queue.Queue[str | None] = queue.Queue(self.MAX_LINES)
        self._dropped = 0
        self._names: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write, name="console", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """A line of the supervisor's own."""
        self._put(self._format(SUPERVISOR, text, "info"))

    def warn(self, text: str) -> None:
        """One that an operator should see."""
        self._put(self._format(SUPERVISOR, text, "warning"))

    def line(self, name: str, text: str) -> None:
        """One line that the process ``name`` has printed."""
        self._put(self._format(name, text, "info"))

    def record(self, name: str, record: LogRecord) -> None:
        """One record of the log of the process ``name``."""
        self._put(encode_record(msgspec.structs.replace(record, process=name)) + "\n")

    def _put(self, line: str) -> None:
        try:
            if self._dropped:
                self._lines.put_nowait(self._format(SUPERVISOR, f"{self._dropped} log lines were dropped", "warning"))
                self._dropped = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _format(self, name: str, text: str, level: str) -> str:
        at = utc(self._now())
        if self._as_json:
            return encode_record(LogRecord(time=at, level=level, process=name, message=text)) + "\n"
        label = f"{name:<10}│"
        if self._colour:
            colour = _COLOURS[self._names.setdefault(name, len(self._names)) % len(_COLOURS)]
            label = f"\x1b[{colour}m{label}\x1b[0m"
            at = at[11:19] + "Z"  # whoever looks at a terminal knows the day
        else:
            # What an app prints may steer a terminal; into a file or a pipe only text goes.
            text = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
        return f"{at} {label} {text}\n"

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone (`serve | head`): the farm goes on without a log.
                continue

    def close(self) -> None:
        """Write what waits, for :attr:`CLOSE_TIMEOUT_S` at most."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(self.CLOSE_TIMEOUT_S)
