"""What the simulation knows about one session: every state that was ever offered, and what was promised."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coatcheck.events import public_id
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import MAX_HISTORY, History, Version
from coatcheck.simulation.application import Operation


def holds(history: History, version: Version) -> bool:
    """Whether a history contains a write. Said again here, so that a broken rule cannot excuse itself."""
    for last in history:
        if last.epoch == version.epoch:
            return last.owner == version.owner and last.seq >= version.seq
    return False


def forgotten(history: History, version: Version) -> bool:
    """A full history says nothing about epochs older than its oldest."""
    return len(history) >= MAX_HISTORY and version.epoch < history[0].epoch


def quorum(servers: int, wanted: int) -> int:
    """How many copies an acknowledged write needs at least. Said again here too."""
    return min(wanted, servers // 2 + 1) if servers >= 3 else 1


class OfferedVersion:
    """A version that was put: ``since`` when, by whom knows of how many session ``servers``, and ``until`` when whoever
    put it last waits for answers. ``ahead_ms``: how far its owner's time was ahead in one of these puts, at most.
    ``lacks_ms``: how much of its record's life its owner may have lacked from the beginning."""

    __slots__ = ("ahead_ms", "lacks_ms", "servers", "since", "until")

    def __init__(self, since: float, servers: int, lacks_ms: float = 0.0) -> None:
        self.since = self.until = since
        self.servers = servers
        self.lacks_ms = lacks_ms
        self.ahead_ms = 0.0

    @property
    def short_ms(self) -> float:
        """By how much the life of its copies may be shorter than its record says."""
        return self.lacks_ms + self.ahead_ms


def breaks_every_lease(holds: int, servers: int, wanted: int) -> bool:
    """Whether so many tombstones meet every set of servers on which a lease can rest."""
    return holds >= max(quorum(servers, wanted), servers - wanted + 1)


class Ack:
    """``level`` servers acknowledged a write, at a moment of simulated time, through the web server ``owner``."""

    __slots__ = ("at", "level", "owner")

    def __init__(self, at: float, level: int, owner: bytes) -> None:
        self.at = at
        self.level = level
        self.owner = owner


class Close:
    """A close that was acknowledged: ``holders`` are the servers that had the tombstone, and have kept it since."""

    __slots__ = ("at", "began", "complete", "effective", "holders", "lost", "moment")

    def __init__(
        self, moment: int, began: float, at: float, holders: set[str], complete: bool, effective: bool = False
    ) -> None:
        """``effective``: no lease of that moment is without one of those that said they had it."""
        self.moment = moment
        self.began = began
        self.at = at
        self.complete = complete
        self.effective = effective
        self.holders = holders
        self.lost: set[str] = set()


class SessionLog:
    """One session of the history, by its key."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.public = public_id(key)
        self.payloads: dict[tuple[Version, bool], bytes] = {}
        self.blobs: dict[Version, bytes] = {}
        """The mapping, encoded, of each data version."""
        self.expires_ms: dict[Version, float] = {}
        """When each live version ends, by its own record."""
        self.offers: dict[Version, OfferedVersion] = {}
        self.accepted_by: dict[Version, set[str]] = {}
        self.operations: list[Operation] = []
        self.acks: dict[Version, Ack] = {}
        self.closes: list[Close] = []
        self.claimed_at: dict[bytes, float] = {}
        """By the owner of a claim: when the first server stored it."""
        self.tried: dict[bytes, int] = {}
        """By web server: the highest epoch that it has claimed or closed with."""
        self.there_since: dict[str, float] = {}
        """Since when each session server has had anything of it, without a gap."""
        self.has_since: dict[tuple[str, Version], float] = {}
        """Since when a session server has had a write, of those that it has."""
        self.came_late: set[tuple[str, Version]] = set()
        """What session servers stored when its sender waited for it no more."""
        self.heard: set[Version] = set()
        """Claims and closes of which a notice has arrived."""
        self.tombstones = 0
        self.tombstone_on: dict[str, float] = {}
        """When each session server had a final tombstone for the first time."""
        self.tombstone_since: dict[str, float] = {}
        """Since when each session server has had its final tombstone, of those that have it."""
        self.tombstone_forgotten: list[tuple[str, float, float]] = []
        """Which session servers lost a final tombstone: since when they had had it, and when that ended."""
        self.tombstone_until = float("inf")
        """When the first final tombstone ends; it outlives every token and entry that it forbids."""
        self.lapses = 0
        """Provisional tombstones: nobody willed them."""
        self.lapsed_in_time: dict[str, float] = {}
        """By web server: when it put a provisional tombstone while the session's own time was over."""
        self.willed = False
        """Whether somebody wanted this session closed: a logout, a login, an operator, a theft."""
        self.on: dict[str, Entry] = {}
        """What each session server was seen to store last."""
        self.lost: set[Version] = set()
        """Writes that no session server has any more, for those that had them forgot."""
        self.found_again: dict[Version, float] = {}
        """Writes that no session server had, until one was given them again: when that last happened."""
        self.forked_away: dict[Version, float] = {}
        """Writes that no session server has any more, for the other branch of a reported fork won: since when. One that
        is put again later counts no more: its loss is to be reported again."""
        self.given_up: dict[bytes, list[History]] = {}
        """By the owner of a claim whose web server reported a fork: the branches that it saw and did not go on from."""
        self.events: list[tuple[float, bytes, Any]] = []
        self.misdated = False
        """Whether a web server put or judged it while it took a wrong time for the farm's."""
        self.forked_by: set[bytes] = set()
        self.below_target = False
        self.forgotten: dict[Version, float] = {}
        """Writes that a session server held and forgot, though others may have them: when that last happened."""
        self.claims_forgotten: dict[str, set[bytes]] = {}
        """By session server, the claims that it had accepted and forgot."""
        self.once_lost: set[Version] = set()
        """Writes that no session server had at some time; a cache may have brought them back since."""
        self.out_of_sight: set[Version] = set()
        """Writes that somebody went on without: one session server had forgotten them, and the others were away."""
        self.vanished_on: set[str] = set()
        """Servers that dropped this one silently and have not been given it since, but by what was late."""
        self.thief = False
        self.issued: dict[bytes, float] = {}
        self.issued_at_site: dict[bytes, str] = {}
        self.arrived_with: set[bytes] = set()
        """Of those, what browsers were given that arrived from another site."""
        self.revoked: dict[bytes, float] = {}
        """Those of chains that were taken away because a ticket was used twice, and since when."""
        self.browser: Any = None
        """Whose session this is, where nobody steals cookies."""
        self.shown: set[bytes] = set()
        self.shows: list[tuple[float, bytes]] = []
        """When which session ID was shown, in order."""
        self.current_at: dict[bytes, float] = {}
        """When each session ID was last taken as the current one."""
        self.last_active: float | None = None
        self.came_back = False
        """Whether it is to live its normal life: it was logged in, or a request that showed its token was answered."""
        self.longest_trip_s = 0.0
        """How long the slowest of its requests was on its way."""
        self.created_ms = 0
        self.user: str | None = None

    def tombstones_at(self, moment: float, until: float | None = None) -> set[str]:
        """The session servers that had a final tombstone at a moment, and kept it ``until`` then (until now)."""
        had = {name for name, since in self.tombstone_since.items() if since <= moment}
        if until is None:
            return had
        return had | {name for name, since, end in self.tombstone_forgotten if since <= moment and end > until}

    def lose(self, versions: Iterable[Version]) -> None:
        """No session server has these writes any more."""
        self.lost.update(versions)
        self.once_lost |= self.lost

    def gives_up(self, owner: bytes, version: Version) -> bool:
        """Whether a claim reported a fork and saw this write in the branch that it did not go on from."""
        return any(holds(history, version) for history in self.given_up.get(owner, ()))

    def ever_set(self, name: str, history: History) -> bool:
        """Whether a state with this history contains a write of ``name``."""
        sets = [one for one in self.operations if one.name == name and one.kind == "write"]
        return any(holds(history, version) or forgotten(history, version) for one in sets for version in one.versions)

    def reported(self, kind: Any, since: float = 0.0, by: bytes | None = None) -> bool:
        """Whether an event was reported ``since`` then, by the web server with the ID ``by`` (by any)."""
        return any(event[2] is kind and event[0] >= since and by in (None, event[1]) for event in self.events)
