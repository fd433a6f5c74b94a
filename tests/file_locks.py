"""Looking at locks on files."""

from __future__ import annotations

import fcntl


def is_taken(file: int) -> bool:
    """Whether somebody else has the lock (flock) on an open file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
