"""A key ring file that is followed: whoever replaces it changes the keys of the processes that look at it.

Farms, commands and copies from other machines may all change the same file. Who changes it holds the file's lock
meanwhile, and judges what is there by then, and not what it has read before.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, key_name, load, save

LOCK_TIMEOUT_S: Final = 5.0
"""So long a change of the file waits for another one, which takes a moment."""
LOCK_AGAIN_S: Final = 0.02

_Stamp = tuple[int, int, int]
_GONE: Final[_Stamp] = (0, 0, 0)


class KeyFile:
    """``keys``: as they were read at the start. ``say`` is told why a file is not taken, once for each file.

    What is damaged changes nothing, and neither does a file that lacks the key that seals: it would end all that this
    key has sealed. Who is ``led`` changes nothing itself, and may have slept while a key was rotated and revoked: it
    takes such a file if it has the same password for session servers, which no change of the keys changes.
    """

    def __init__(self, path: Path, keys: FarmKeys, say: Callable[[str], None], led: bool = False) -> None:
        self.keys = keys
        self._path = path
        self._say = say
        self._led = led
        self._stamp: _Stamp | None = None  # it may have been replaced since it was read
        self._of_others = ""

    @property
    def ring(self) -> tuple[tuple[bytes, ...], int]:
        """The secrets, and the index of the one that seals."""
        return self.keys.keys, self.keys.primary

    def look(self) -> bool:
        """Take what was put there since the last look; whether the keys are others now."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._stamp, self._of_others = stamp, ""
        if stamp == _GONE:
            return False
        try:
            found = load(self._path)
        except ConfigError as error:
            self._say(f"the keys stay as they are: {error}")
            return False
        password = self.keys.session_server_password
        sealing = self.keys.keys[self.keys.primary]
        if sealing not in found.keys and not (self._led and found.session_server_password == password):
            self._of_others = (
                f"keys_file: {self._path} lacks {key_name(sealing)}, which seals; put it back, or restart to end all "
                "that it has sealed"
            )
            self._say(f"the keys stay as they are: {self._of_others}")
            return False
        before, self.keys = self.keys, msgspec.structs.replace(found, session_server_password=password)
        return self.keys != before

    def change(self, change: Callable[[FarmKeys], FarmKeys]) -> FarmKeys:
        """Write what ``change`` makes of the keys as they are now. Hold the file's lock.

        Raises :class:`ConfigError` as ``change`` does, for a file that is not taken because it lacks the key that
        seals, and for one that cannot be written. Then the keys are as they were found.
        """
        self.look()
        if self._of_others:
            raise ConfigError(self._of_others)
        keys = change(self.keys)
        if keys != self.keys:
            save(self._path, keys)
            self._stamp = _stamp(self._path)
            self.keys = keys
        return keys


class KeyFileLock:
    """A lock on the file itself, so that all wait for each other who change it, whatever run directory they are in.

    The kernel drops it with the process. A file that is not there is locked by nobody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def pauses(self) -> Iterator[float]:
        """How long to wait (seconds), again and again; when there is nothing more to wait for, it is held.

        Raises :class:`ConfigError` if somebody else holds it for :data:`LOCK_TIMEOUT_S`, or it cannot be locked.
        """
        until = time.monotonic() + LOCK_TIMEOUT_S
        while not self._attempt():
            if time.monotonic() >= until:
                raise ConfigError(f"keys_file: {self._path} is being changed by somebody else; try again")
            yield LOCK_AGAIN_S

    def _attempt(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise ConfigError(f"keys_file: {self._path}: {error.strerror}; name a file that can be written") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(file), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_there = False
        except OSError as error:
            os.close(file)
            raise ConfigError(f"keys_file: {self._path}: {error.strerror}; it cannot be locked") from None
        if is_there:
            self._held = file
        else:  # somebody else has it, or has replaced it meanwhile: then this lock is of a file that is no more
            os.close(file)
        return is_there


def _stamp(path: Path) -> _Stamp:
    """What tells a file from the one that was there before it; :data:`_GONE` if there is none."""
    try:
        info = path.stat()
    except OSError:
        return _GONE
    return info.st_ino, info.st_mtime_ns, info.st_size
