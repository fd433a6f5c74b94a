"""Reading and making files of secrets: whatever stands under their name, nobody waits for it or sees half of it."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from coatcheck.directory_sync import sync_directory
from coatcheck.errors import ConfigError
from coatcheck.farm.files.run_directory import write_private

MAX_FILE_BYTES: Final = 1 << 20

_NO_LINKS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What file systems answer that have no hard links, or where a policy forbids them."""


def read_secret(path: Path, setting: str, is_sealed: bool = False) -> bytes:
    """The content of a regular file that only its owner can read, unless it ``is_sealed``. Whatever else it is, is said
    at once: a pipe would be waited for, and a device may do something when it is opened.

    Raises:
        ConfigError: it is no such file, is larger than :data:`MAX_FILE_BYTES`, or cannot be read.
    """
    try:
        _judge(path.stat(), path, setting, is_sealed)
        # It may have been replaced since: this open waits for nobody either, and what it has found is judged again.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _judge(os.fstat(file), path, setting, is_sealed)
            with os.fdopen(file, "rb", closefd=False) as content:
                found = content.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(file)
    except OSError as error:
        raise ConfigError(f"{setting}: {path}: {error.strerror}; name a readable file") from None
    if len(found) > MAX_FILE_BYTES:
        raise ConfigError(f"{setting}: {path} is larger than {MAX_FILE_BYTES} bytes; name another file")
    return found


def _judge(info: os.stat_result, path: Path, setting: str, is_sealed: bool) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"{setting}: {path} is {_kind(info.st_mode)}; name a regular file")
    if stat.S_IMODE(info.st_mode) & 0o077 and not is_sealed:
        raise ConfigError(f"{setting}: others can read {path}; run chmod 600 on it")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def make_secret(path: Path, content: bytes) -> bool:
    """Make a file of mode 0600, whole and on disk when it appears, if nobody else has made one by then; whether we
    did. Raises :class:`OSError`."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private(fresh, content)
        is_ours = _put_into_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_directory(path.parent)
    return is_ours


def _put_into_place(fresh: Path, path: Path) -> bool:
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _moved_into_place(fresh, path)
    return True


def _moved_into_place(fresh: Path, path: Path) -> bool:
    """The same without hard links: who makes a file in this directory locks it meanwhile."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if path.exists():
            return False
        fresh.replace(path)
    finally:
        os.close(directory)
    return True
