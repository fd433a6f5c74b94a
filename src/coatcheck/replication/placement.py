"""Which session servers hold which session: rendezvous hashing (protocol section 4, mission B1, B3, B4, B10)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

Copies = int | Literal["all"]


def copies_wanted(copies: Copies, servers: int) -> int:
    """How many copies each session gets when ``servers`` session servers exist."""
    return servers if copies == "all" else min(copies, servers)


class Placement:
    """Ranks the session servers for a key.

    ``copies=1`` gives disjoint subsets (B4), ``copies=2`` overlapping ones (B10), ``copies="all"`` a
    full copy on each server (B1). Removing a server moves only the sessions that it held.
    """

    MAX_CACHED = 65_536

    def __init__(self, servers: Sequence[str], copies: Copies) -> None:
        if not servers:
            raise ValueError("at least one session server is needed")
        if len(set(servers)) != len(servers):
            raise ValueError(f"session servers must have different names: {list(servers)}")
        if copies != "all" and copies < 1:
            raise ValueError(f"copies must be at least 1 or 'all', not {copies!r}")
        self.servers = tuple(servers)
        self.wanted = copies_wanted(copies, len(servers))
        self._salts = [(name, name.encode()) for name in servers]
        self._ranked: dict[bytes, tuple[str, ...]] = {}

    def ranking(self, key: bytes) -> tuple[str, ...]:
        """All session servers, best first, the same on every web server."""
        ranked = self._ranked.get(key)
        if ranked is None:
            if len(self._ranked) >= self.MAX_CACHED:
                self._ranked.clear()
            scores = [(blake2b(key, key=salt[:64], digest_size=8).digest(), name) for name, salt in self._salts]
            ranked = tuple(name for _, name in sorted(scores, reverse=True))
            self._ranked[key] = ranked
        return ranked
