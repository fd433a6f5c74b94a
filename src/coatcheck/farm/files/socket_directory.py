"""The private directory of a farm's internal Unix sockets.

It is not the run directory: that one may lie under a path too long for a socket's address, or on a file system without
sockets, and may be deleted under a running farm, which must cost no more than the note in it. A symbolic link in the
run directory leads here, for operators, and for the next start, which removes what a killed farm left.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError

PREFIX: Final = "coatcheck-"
_LONGEST_NAME: Final = "session-64.sock.new"
MAX_PATH_BYTES: Final = 103
"""Of a Unix socket's path: 107 on Linux, 103 on macOS and the BSDs (unix(7), unix(4))."""


def make_socket_directory(link: Path) -> Path:
    """A new directory of mode 0700, in the directory for temporary files; ``link`` leads to it.

    Where nothing can be made there, it is made in the place of the link.

    Raises:
        ConfigError: there is no place whose path is short enough.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
        # mkdtemp makes it for us alone, under a name that nobody can foresee.
        with contextlib.suppress(OSError):
            made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
            if _fits(made):
                link.symlink_to(made)
                return made
            made.rmdir()
    if not _fits(link):
        raise ConfigError(
            f"run_dir: no directory for sockets can be made in {tempfile.gettempdir()} (set TMPDIR), and the path of "
            f"{link.parent} is too long for them; choose a shorter --run-dir"
        )
    link.mkdir(mode=0o700)
    return link


def remove_socket_directory(link: Path) -> None:
    """Remove what ``link`` leads to, as far as it is ours and holds nothing but sockets, and the link."""
    directory = link.readlink() if link.is_symlink() else link
    with contextlib.suppress(OSError):
        found = directory.lstat()
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if ours and (directory == link or directory.name.startswith(PREFIX)):
            for entry in directory.iterdir():
                if entry.is_socket():
                    entry.unlink()
            directory.rmdir()
    if link.is_symlink():
        link.unlink()


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / _LONGEST_NAME)) <= MAX_PATH_BYTES
