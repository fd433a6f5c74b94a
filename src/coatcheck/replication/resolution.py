"""Two servers disagree: who wins (protocol section 3).

A tombstone that somebody willed, if there is one. Else a provisional tombstone that covers all live copies; else the
live copy that covers all others; else it is a fork, and the highest data version wins (the claim that follows
supersedes both).
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
    willed = [entry for entry in entries if entry.final]
    if willed:
        return Resolution(max(willed, key=_rank), forked=False)
    live = [entry for entry in entries if not entry.closed]
    provisional = [entry for entry in entries if entry.closed and all(contains(entry, other) for other in live)]
    if provisional:
        return Resolution(max(provisional, key=_rank), forked=False)
    whole = [entry for entry in live if all(contains(entry, other) for other in live)]
    if whole:
        return Resolution(max(whole, key=lambda entry: entry.version), forked=False)
    return Resolution(max(live, key=_rank), forked=True)
