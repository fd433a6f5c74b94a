"""The run directory: where a farm can be found, and what it may not lose between two starts.

It holds ``lock`` (held while a farm lives here), ``farm.json`` (pids and addresses), ``control.sock`` and
``keys.json``, and the link ``sockets`` to the directory of the internal sockets. Only its owner may read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.directory_sync import sync_directory
from coatcheck.errors import ConfigError
from coatcheck.farm.files.socket_directory import make_socket_directory, remove_socket_directory

FARM_FILE: Final = "farm.json"
CONTROL_SOCKET: Final = "control.sock"
KEYS_FILE: Final = "keys.json"
RING_FILE: Final = "ring.sealed"
LOCK_FILE: Final = "lock"
SOCKETS_LINK: Final = "sockets"
IGNORE_FILE: Final = ".gitignore"


class RunDirectory:
    """One farm's run directory; :meth:`acquire` makes it ours until :meth:`release` or the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None
        self._sockets: Path | None = None

    @property
    def sockets(self) -> Path:
        """The private directory of the internal sockets: made when it is first asked for, gone with the farm."""
        if self._sockets is None:
            self._sockets = make_socket_directory(self.path / SOCKETS_LINK)
        return self._sockets

    @property
    def control_socket(self) -> Path:
        return self.path / CONTROL_SOCKET

    @property
    def keys_file(self) -> Path:
        return self.path / KEYS_FILE

    def is_in_use(self) -> bool:
        """Whether a farm lives here; creates nothing."""
        try:
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared, so that nobody takes another one who looks for a farm.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    def acquire(self) -> None:
        """Create it (mode 0700) or take over what a dead farm left.

        The kernel drops the lock with the process, however it dies, so a stale directory is never mistaken
        for a live one.

        Raises:
            ConfigError: a live farm is here, or the directory cannot be used.
        """
        try:
            if self.path.is_symlink():
                raise ConfigError(f"run_dir: {self.path} is a symbolic link; name the directory itself")
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_private(self.path)
            lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ConfigError(f"run_dir: {self.path} is no directory; choose another --run-dir") from None
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path}: {error.strerror}; choose another --run-dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            pid = self.read().get("pid", "unknown")
            raise ConfigError(
                f"run_dir: a farm is running in {self.path} (pid {pid}); stop it or choose another --run-dir"
            ) from None
        self._lock = lock
        for left in (FARM_FILE, CONTROL_SOCKET):
            (self.path / left).unlink(missing_ok=True)
        remove_socket_directory(self.path / SOCKETS_LINK)
        _ignore_in_git(self.path / IGNORE_FILE)

    def release(self) -> None:
        """Give it up; the keys stay, so that the next start opens today's cookies."""
        if self._lock is None:
            return
        for name in (FARM_FILE, CONTROL_SOCKET):
            # The directory may have been deleted, or made read-only, under a running farm.
            with contextlib.suppress(OSError):
                (self.path / name).unlink()
        if self._sockets is not None:
            remove_socket_directory(self._sockets)
            with contextlib.suppress(OSError):
                remove_socket_directory(self.path / SOCKETS_LINK)
            self._sockets = None
        os.close(self._lock)
        self._lock = None

    def write(self, farm: dict[str, Any]) -> None:
        """Replace ``farm.json`` at once, so that no reader sees half of it."""
        replace_private(self.path / FARM_FILE, msgspec.json.format(msgspec.json.encode(farm)) + b"\n", durable=False)

    def read(self) -> dict[str, Any]:
        """What ``farm.json`` says, or nothing."""
        try:
            found = msgspec.json.decode((self.path / FARM_FILE).read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            return {}
        return found


def _make_private(path: Path) -> None:
    """Take the directory for ourselves: what is checked is what was opened, and no link is followed."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(directory)
        if info.st_uid != os.geteuid():
            raise ConfigError(f"run_dir: {path} belongs to another user; choose another --run-dir")
        if stat.S_IMODE(info.st_mode) & 0o077:
            os.fchmod(directory, 0o700)
    finally:
        os.close(directory)


def _ignore_in_git(path: Path) -> None:
    """Keep the keys out of commits, even out of those of ``git add --all``; an existing file is the user's."""
    with contextlib.suppress(OSError), path.open("x") as file:
        file.write("# Made by coatcheck: this directory holds secrets.\n*\n")


def replace_private(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file of mode 0600 and move it into place; ``durable``: it outlives a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        write_private(fresh, content, durable)
        fresh.replace(path)
        if durable:
            sync_directory(path.parent)
    except OSError:
        # Half a file of secrets is of no use to anybody.
        fresh.unlink(missing_ok=True)
        raise


def write_private(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a new file of mode 0600; ``durable``: its content is on disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
