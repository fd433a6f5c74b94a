"""What a session server that only has memory hands to its successor at a planned stop: one sealed file, used once.

The file is a magic line, then blocks, each ``length (4), sealed``: first the :class:`Stamp`, then rows, then their
count. Each block is sealed with its place, so nothing can be cut off, put in or exchanged. What session servers may not
read (the payloads) stays sealed with keys that they do not have.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from coatcheck.directory_sync import sync_directory
from coatcheck.errors import CoatcheckError, CorruptEntry, TokenRejected
from coatcheck.session_server.table import EntryTable, TableFull
from coatcheck.tokens.keyring import KeyRing, SealedBox

SUFFIX: Final = ".handover"
MAGIC: Final = b"coatcheck handover 1\n"
BLOCK_BYTES: Final = 1024 * 1024
"""Rows are gathered up to this size; a block is one row longer at most."""
MAX_BLOCK_BYTES: Final = 4 * BLOCK_BYTES
_LENGTH: Final = struct.Struct(">I")
_ROWS, _END = b"r", b"e"
"""How a block begins: with rows, or the last one."""
_ROW: Final = struct.Struct(">16sQI")

Row = tuple[bytes, int, bytes]
"""Key, life left in milliseconds, stored bytes."""


class HandoverRefused(CoatcheckError):
    """A file that must not be used; the text says why, in words for the operator's log."""


class Stamp(msgspec.Struct, frozen=True):
    """Whose rows a file holds: written by ``server`` at the end of the farm's ``run``, at a Unix time in ms."""

    run: str
    server: str
    written_at_ms: int


def handover_box(secrets: tuple[bytes, ...], primary: int, farm: str) -> SealedBox:
    """What seals and opens these files; ``secrets`` are derived from the farm's, see :meth:`KeyRing.derived`."""
    return KeyRing(secrets, primary).box("handover", farm, os.urandom)


def write_handover(path: Path, stamp: Stamp, rows: Iterable[Row], box: SealedBox) -> int:
    """Write the file, whole or not at all, so that it outlives a power cut; answers the number of rows.

    Raises ``OSError``; then nothing is left.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    written = 0
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(MAGIC)
            blocks = _Blocks(box, stamp)
            file.write(blocks.seal(msgspec.msgpack.encode(stamp)))
            for plain, count in _gathered(rows):
                file.write(blocks.seal(plain))
                written += count
            file.write(blocks.seal(b"%b%d" % (_END, written)))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_directory(path.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return written


def take_handover(path: Path, run: str, table: EntryTable, box: SealedBox, clocks: Clocks) -> int:
    """Take the file away, durably, and then its rows into ``table``; answers how many are live and were taken.

    Raises :class:`HandoverRefused` if the file was not written at the end of ``run``, is not whole, or takes too long;
    then the table is as it was. The file is gone in any case.
    """
    try:
        with path.open("rb") as file:
            # Before anything else: whatever happens from here on, no other start finds it.
            path.unlink()
            sync_directory(path.parent)
            for _ in _read(file, box, run, clocks)[1]:
                pass  # all of it is whole, or nothing is used
            stamp, rows = _read(file, box, run, clocks)
            age_ms = max(0, clocks.wall_ms() - stamp.written_at_ms)
            return sum(_take(table, row, age_ms, clocks.table_ms()) for row in rows)
    except OSError as error:
        raise HandoverRefused(f"{path.name}: {error.strerror}") from None


class Clocks(msgspec.Struct, frozen=True):
    """The table's clock and Unix time in milliseconds; :attr:`late` says that reading has taken too long."""

    table_ms: Callable[[], int]
    wall_ms: Callable[[], int]
    late: Callable[[], bool]


class _Blocks:
    """Seals and opens blocks with their place: which run and server, and the how-manieth."""

    def __init__(self, box: SealedBox, stamp: Stamp | None) -> None:
        self._box = box
        self.stamp = stamp
        self._next = 0

    def _context(self) -> bytes:
        at, self._next = self._next, self._next + 1
        # The first block says who wrote it, so it cannot be bound to that.
        return f"{self.stamp.run}\x00{self.stamp.server}\x00{at}".encode() if at and self.stamp else b"stamp"

    def seal(self, plain: bytes) -> bytes:
        sealed = self._box.seal(plain, self._context())
        return _LENGTH.pack(len(sealed)) + sealed

    def open(self, sealed: bytes) -> bytes:
        try:
            return self._box.open(sealed, self._context())
        except TokenRejected as rejection:
            raise HandoverRefused(
                f"it was not written by this farm, or was changed ({rejection.reason.value})"
            ) from None


def _gathered(rows: Iterable[Row]) -> Iterator[tuple[bytes, int]]:
    """Rows as blocks of bytes, each with its number of rows."""
    parts = [_ROWS]
    size = count = 0
    for key, left_ms, raw in rows:
        parts += (_ROW.pack(key, left_ms, len(raw)), raw)
        size += _ROW.size + len(raw)
        count += 1
        if size >= BLOCK_BYTES:
            yield b"".join(parts), count
            parts, size, count = [_ROWS], 0, 0
    if count:
        yield b"".join(parts), count


def _read(file: IO[bytes], box: SealedBox, run: str, clocks: Clocks) -> tuple[Stamp, Iterator[Row]]:
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise HandoverRefused("it is no hand-over of this version")
    blocks = _Blocks(box, None)
    try:
        blocks.stamp = stamp = msgspec.msgpack.decode(blocks.open(_next_block(file)), type=Stamp)
    except msgspec.DecodeError:
        raise HandoverRefused("its head makes no sense") from None
    if stamp.run != run:
        raise HandoverRefused("it was not written at the end of the farm's last run: what came after it is missing")
    return stamp, _rows(file, blocks, clocks)


def _rows(file: IO[bytes], blocks: _Blocks, clocks: Clocks) -> Iterator[Row]:
    count = 0
    while True:
        if clocks.late():
            raise HandoverRefused("reading it takes too long")
        plain = blocks.open(_next_block(file))
        if plain[:1] == _END:
            if plain != b"%b%d" % (_END, count) or file.read(1):
                raise HandoverRefused("it is not whole")
            return
        at = 1
        while at < len(plain):
            key, left_ms, size = _ROW.unpack_from(plain, at)
            at += _ROW.size + size
            yield key, left_ms, plain[at - size : at]
            count += 1


def _next_block(file: IO[bytes]) -> bytes:
    head = file.read(_LENGTH.size)
    size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    block = file.read(size) if size <= MAX_BLOCK_BYTES else b""
    if not size or len(block) != size:
        raise HandoverRefused("it is not whole")
    return block


def _take(table: EntryTable, row: Row, age_ms: int, now_ms: int) -> bool:
    key, left_ms, raw = row
    if left_ms <= age_ms:
        return False  # it has expired meanwhile
    try:
        return table.take_over(key, left_ms - age_ms, raw, now_ms)
    except (CorruptEntry, TableFull):
        return False  # it is counted as not taken; the other servers may have it
