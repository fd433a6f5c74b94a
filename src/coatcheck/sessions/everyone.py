"""Everybody's sessions are closed at once (protocol section 11; ASVS 7.4.5).

One entry of the farm says when that was last done. Each web server reads it over and over, and serves nothing from its
cache while it cannot: so a close of all takes effect wherever the network is cut, and needs no scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coatcheck.errors import SessionUnavailable
from coatcheck.events import Event, EventKind
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Flow, Pause, Tell
from coatcheck.replication.farm_clock import TOLERANCE_MS
from coatcheck.replication.notice import EVERYBODY, Notice
from coatcheck.replication.version import OWNER_BYTES, SERVER_ID_BYTES, Version
from coatcheck.sessions.users import UserIndexes

NOBODY: Final = ""
"""The name under which the farm's own entry is kept; no user has it."""
LEAST_S: Final = 2.0
"""How old what is known may be, where the lease is shorter."""
MOST_S: Final = 5.0
"""How long nobody asks at most."""
SLACK_S: Final = 0.6
"""What a question that is not answered takes, and a stall that is not noticed yet."""


class Everyone:
    """When all sessions were closed, as far as this web server knows."""

    def __init__(self, copies: Copies, users: UserIndexes) -> None:
        self._copies = copies
        self._users = users
        self._world = copies.world
        self._known_at = -float("inf")
        self.fresh_s = max(copies.policy.lease_s, LEAST_S)
        self.pause_s = min(0.75 * self.fresh_s, MOST_S)
        """Between two questions: an answer may take the rest."""
        self.on_closed: Callable[[], None] = lambda: None

    @property
    def closed_before(self) -> int:
        """No session lives that was begun by then (Unix ms); 0: nobody has closed them all."""
        return self._users.all_closed_before

    def is_known(self) -> bool:
        """Whether nobody need be asked before a session is opened."""
        return self._world.monotonic() - self._known_at < self.fresh_s

    def is_about_it(self, notice: Notice) -> bool:
        return notice.key in self._users.keys_of(NOBODY)

    def learn(self) -> Flow[None]:
        """Ask the session servers. Raises :class:`SessionUnavailable` if too few answer; until they do, nothing is
        served from the cache."""
        asked_at = self._world.monotonic()
        try:
            closed_before = yield from self._users.closed_before(NOBODY)
        except SessionUnavailable:
            self._copies.suspend_leases()
            raise
        self._take(closed_before)
        self._known_at = max(self._known_at, asked_at)
        self._copies.resume_leases()

    def close(self, why: str) -> Flow[None]:
        """Close all sessions that were begun until now, whoever hosts them.

        Returns when no web server serves them any more. Raises :class:`SessionUnavailable` if that cannot be written
        where all hear of it; then it is to be repeated.
        """
        # Clocks that differ by less agree (protocol section 8): what began up to so much later is closed as well.
        closed_before = self._world.now_ms() + TOLERANCE_MS
        yield from self._users.close_unlisted(NOBODY, closed_before)
        self._take(closed_before)
        nobody = self._copies.server_id + bytes(OWNER_BYTES - SERVER_ID_BYTES)
        yield Tell(EVERYBODY, Notice(self._users.keys_of(NOBODY)[0], Version(1, nobody, 0), False).encode())
        self._world.report(Event(EventKind.ALL_CLOSED, detail=why))
        yield Pause(self.fresh_s + SLACK_S)

    def _take(self, closed_before: int) -> None:
        if closed_before > self._users.all_closed_before:
            self._users.all_closed_before = closed_before
            self._copies.void_leases()
            self._copies.cache.clear()
            self.on_closed()
