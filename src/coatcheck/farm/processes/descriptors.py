"""How many files and sockets a process of the farm may have open."""

from __future__ import annotations

import resource
from typing import Final

WANTED: Final = 16_384
"""Enough for a director's connections to clients and to web servers. Many systems begin with 1024."""


def raise_limit() -> None:
    """Raise this process's own limit to :data:`WANTED`, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
