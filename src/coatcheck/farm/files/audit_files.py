"""The audit log as it lies on the disk: the files of all servers, read in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from coatcheck.audit import AuditRecord
from coatcheck.audit_lines import FILES, SUFFIX

MAX_LINE_BYTES: Final = 64 * 1024
"""Of a record; a longer line is none of ours, and left out."""


class AuditLine(NamedTuple):
    """A record, and the line that holds it: ASCII, so that it steers no terminal."""

    record: Any
    text: str


class AuditFiles:
    """Reads what is there, and then what is added. A line that is half written is read when it is whole.

    ``kind``: of the records, with a ``time``; a line that holds none of them is left out.
    """

    def __init__(self, directory: Path, kind: type = AuditRecord) -> None:
        self._directory = directory
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
        self._read_to: dict[bytes, int] = {}
        """How many bytes of each file were read, by its first line: one that is full is renamed."""

    def so_far(self) -> Iterator[AuditLine]:
        """All that is there now, from the oldest."""
        chains = (self._of_server(path) for path in sorted(self._directory.glob(f"*{SUFFIX}")))
        yield from heapq.merge(*chains, key=lambda line: line.record.time)

    def since(self) -> list[AuditLine]:
        """What was added since it was asked last, of all web servers, also of those that are new."""
        return sorted(self.so_far(), key=lambda line: line.record.time)

    def _of_server(self, path: Path) -> Iterator[AuditLine]:
        older = [path.with_name(f"{path.name}.{number}") for number in range(FILES - 1, 0, -1)]
        for one in (*older, path):
            yield from self._lines(one)

    def _lines(self, path: Path) -> Iterator[AuditLine]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            first = file.readline()
            at = self._read_to.get(first, 0)
            file.seek(at)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                at += len(raw)
                self._read_to[first] = at
                if len(raw) <= MAX_LINE_BYTES and (line := self._line(raw)) is not None:
                    yield line

    def _line(self, raw: bytes) -> AuditLine | None:
        try:
            return AuditLine(self._decoder.decode(raw), raw.decode("ascii").rstrip("\n"))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
