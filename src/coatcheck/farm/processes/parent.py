"""No orphans: a process of the farm ends when its supervisor does, however that one ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux for SIGKILL at the parent's death; elsewhere the end of the control channel must do.

    The kernel's way works even while this process is stopped or its event loop is busy.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have died before we asked.
    if os.getppid() != parent_pid:
        os._exit(1)
