"""Two servers disagree: who wins (protocol section 3).

A tombstone if there is one; else the copy that covers all others; else it is a fork, and the highest
data version wins (the claim that follows supersedes both).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version, covers, newest_write

_NOTHING_WRITTEN = Version(0, b"", 0)


class Resolution(msgspec.Struct, frozen=True):
    """``newest``: the copy to go on with. ``forked``: another copy holds writes that it does not."""

    newest: Entry
    forked: bool


def contains(entry: Entry, other: Entry) -> bool:
    """Whether ``entry`` has every write that ``other`` has."""
    return covers(entry.history, newest_write(other.history))


def _rank(entry: Entry) -> tuple[Version, Version]:
    return newest_write(entry.history) or _NOTHING_WRITTEN, entry.version


def resolve(entries: Iterable[Entry]) -> Resolution | None:
    """The newest of several copies of one session; ``None`` if there is none."""
    entries = list(entries)
    if not entries:
        return None
    tombstones = [entry for entry in entries if entry.closed]
    if tombstones:
        return Resolution(max(tombstones, key=_rank), forked=False)
    whole = [entry for entry in entries if all(contains(entry, other) for other in entries)]
    if whole:
        return Resolution(max(whole, key=lambda entry: entry.version), forked=False)
    return Resolution(max(entries, key=_rank), forked=True)
