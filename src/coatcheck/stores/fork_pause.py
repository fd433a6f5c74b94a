"""SQLite connections are closed while this process forks.

SQLite remembers in the process which locks it has on a file, and the kernel takes them from a forked child: the child
would believe in locks that only its parent has, and whoever of the two closes last would not know of the other.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol


class Pausable(Protocol):
    """What has an SQLite connection."""

    def pause(self) -> bool:
        """Close it, and let nobody in until :meth:`go_on`; ``False`` if a call takes too long for that."""
        ...

    def go_on(self) -> None:
        """End a pause; after a fork in parent and child. The next call opens the file again."""
        ...


PAUSE_PATIENCE_S: Final = 1.0
"""So long a fork waits for a call that is under way."""

_all: weakref.WeakSet[Pausable] = weakref.WeakSet()
_paused: list[Pausable] = []


def pause_at_fork(one: Pausable) -> None:
    """From now on, as long as it exists."""
    _all.add(one)


def _before_fork() -> None:
    _paused.extend(one for one in list(_all) if one.pause())


def _after_fork() -> None:
    while _paused:
        _paused.pop().go_on()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
