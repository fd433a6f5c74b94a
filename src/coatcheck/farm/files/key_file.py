"""A key ring file that is followed: whoever replaces it changes the keys of the processes that look at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, key_name, load, save

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

    @property
    def ring(self) -> tuple[tuple[bytes, ...], int]:
        """The secrets, and the index of the one that seals."""
        return self.keys.keys, self.keys.primary

    def look(self) -> bool:
        """Take what was put there since the last look; whether the keys are others now."""
        stamp = _stamp(self._path)
        if stamp in (self._stamp, _GONE):
            return False
        self._stamp = stamp
        try:
            found = load(self._path)
        except ConfigError as error:
            self._say(f"the keys stay as they are: {error}")
            return False
        password = self.keys.session_server_password
        sealing = self.keys.keys[self.keys.primary]
        if sealing not in found.keys and not (self._led and found.session_server_password == password):
            self._say(
                f"the keys stay as they are: keys_file: {self._path} lacks {key_name(sealing)}, which seals; put it "
                "back, or restart to end all that it has sealed"
            )
            return False
        before, self.keys = self.keys, msgspec.structs.replace(found, session_server_password=password)
        return self.keys != before

    def keep(self, keys: FarmKeys) -> FarmKeys:
        """Write these, if they are others; raises :class:`ConfigError`, and then the keys are as before."""
        if keys != self.keys:
            save(self._path, keys)
            self._stamp = _stamp(self._path)
            self.keys = keys
        return keys


def _stamp(path: Path) -> _Stamp:
    """What tells a file from the one that was there before it; :data:`_GONE` if there is none."""
    try:
        info = path.stat()
    except OSError:
        return _GONE
    return info.st_ino, info.st_mtime_ns, info.st_size
