"""Which session servers hold which session: rendezvous hashing (protocol section 4, mission B1, B3, B4, B10)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import ClassVar, Literal

Copies = int | Literal["all"]


def copies_wanted(copies: Copies, servers: int) -> int:
    """How many copies each session gets when ``servers`` session servers exist."""
    return servers if copies == "all" else min(copies, servers)


def write_quorum(wanted: int, servers: int) -> int:
    """How many session servers must hold a change before it is acknowledged: more than half of the servers, or all
    wanted copies where those are fewer; one where there are fewer than three servers."""
    return min(wanted, servers // 2 + 1) if servers >= QUORUM_FROM else 1


def read_quorum(wanted: int, servers: int) -> int:
    """How many answers are sure to hold one from a server of any write quorum; with fewer than three servers
    answers are not counted."""
    return servers - write_quorum(wanted, servers) + 1 if servers >= QUORUM_FROM else 1


QUORUM_FROM = 3
MAX_LIST_NUMBER = 63
"""A token has six bits for the number of the list of session servers; numbers go round."""


def is_newer_list(one: int, other: int) -> bool:
    """Whether list number ``one`` came after ``other``: serial number arithmetic (RFC 1982) of six bits."""
    return 0 < (one - other) % (MAX_LIST_NUMBER + 1) <= MAX_LIST_NUMBER // 2


class Placement:
    """Ranks the session servers for a key.

    ``copies=1`` gives disjoint subsets (B4), ``copies=2`` overlapping ones (B10), ``copies="all"`` a
    full copy on each server (B1). Removing a server moves only the sessions that it held.
    """

    MAX_CACHED: ClassVar = 32_768
    """Rankings that are remembered, in two halves: when the newer one is full, the older one is forgotten. With more
    sessions than that, those that are asked for often stay, and the others are ranked anew (microseconds)."""
    MAX_ORDERS: ClassVar = 5_040
    """Different rankings of which there is one object each: all those of seven session servers."""

    def __init__(self, servers: Sequence[str], copies: Copies, list_number: int = 0) -> None:
        """``list_number``: which list of session servers this is; the operator raises it with each change."""
        if not servers:
            raise ValueError("at least one session server is needed")
        if len(set(servers)) != len(servers):
            raise ValueError(f"session servers must have different names: {list(servers)}")
        if copies != "all" and copies < 1:
            raise ValueError(f"copies must be at least 1 or 'all', not {copies!r}")
        self.servers = tuple(servers)
        if not 0 <= list_number <= MAX_LIST_NUMBER:
            raise ValueError(f"the number of a list is 0 to {MAX_LIST_NUMBER}, not {list_number!r}")
        self.list_number = list_number
        self.wanted = copies_wanted(copies, len(servers))
        self.write_quorum = write_quorum(self.wanted, len(servers))
        self.read_quorum = read_quorum(self.wanted, len(servers))
        self._salts = [(name, name.encode()) for name in servers]
        self._ranked: dict[bytes, tuple[str, ...]] = {}
        self._older: dict[bytes, tuple[str, ...]] = {}
        self._orders: dict[tuple[str, ...], tuple[str, ...]] = {}

    def ranking(self, key: bytes) -> tuple[str, ...]:
        """All session servers, best first, the same on every web server."""
        ranked = self._ranked.get(key)
        if ranked is None:
            ranked = self._older.get(key) or self._rank(key)
            if len(self._ranked) >= self.MAX_CACHED // 2:
                self._older, self._ranked = self._ranked, {}
            self._ranked[key] = ranked
        return ranked

    def _rank(self, key: bytes) -> tuple[str, ...]:
        scores = [(blake2b(key, key=salt[:64], digest_size=8).digest(), name) for name, salt in self._salts]
        ranked = tuple(name for _, name in sorted(scores, reverse=True))
        if len(self._orders) < self.MAX_ORDERS:
            return self._orders.setdefault(ranked, ranked)
        return self._orders.get(ranked, ranked)
