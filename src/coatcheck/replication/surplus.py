"""Copies that stood in for a session server that was away, and are too many since it is back.

Protocol section 9, mission B4 and B8.
"""

from __future__ import annotations

import msgspec

from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Accepted, Flow, Put, Settled
from coatcheck.replication.entry import WITHDRAWN_MS
from coatcheck.replication.resolution import contains
from coatcheck.replication.view import View


class Surplus:
    """Withdraws stand-ins: each session is on the servers of its own subset again.

    A copy goes only while all servers of the list have answered, those that the session belongs to hold the newest
    entry, and that entry covers it. A web server does this only after it has seen one of them leave and come back:
    where the list of session servers is being changed, those that know the old list still need the copy.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._away: set[str] = set()
        self._back: set[str] = set()

    def note(self, server: str) -> None:
        """Contact with a session server was lost or found again."""
        if not self._copies.world.reachable(server):
            self._away.add(server)
        elif server in self._away:
            self._back.add(server)

    def of_hosted(self, copy: Copy) -> bool:
        """Whether a hosted session has stand-ins that could go now, as far as its web server knows."""
        if not self._back:
            return False
        home = self._home(copy.key)
        reachable = self._copies.world.reachable
        return (
            not self._back.isdisjoint(home)
            and any(name not in home for name in copy.seen)
            and all(reachable(name) for name in self._copies.placement.servers)
        )

    def withdraw(self, key: bytes) -> Flow[bool]:
        """Withdraw the stand-ins of one session; whether there were any. Run it inside :class:`Exclusive`."""
        copies = self._copies
        if self._back.isdisjoint(self._home(key)):
            return False
        view = yield from copies.viewer.look(key)
        stand_ins = self._stand_ins(view)
        if not stand_ins:
            return False
        # A claim first, which the stand-ins are not told of: should what withdraws one be delayed, it finds that
        # version or none, but never a copy that has been put there since.
        copy = yield from copies.claim(view, leave=stand_ins)
        if copy is None or not all(map(copy.is_on, self._home(key))):
            return True
        for name in stand_ins:
            entry = view.entries[name]
            ended = msgspec.structs.replace(entry, expires_in_ms=WITHDRAWN_MS)
            settled: Settled = yield Put(key, ended, {name: entry.version})
            if isinstance(settled.replies[name], Accepted):
                copy.saw({name: None})
        return True

    def _home(self, key: bytes) -> tuple[str, ...]:
        placement = self._copies.placement
        return placement.ranking(key)[: placement.wanted]

    def _stand_ins(self, view: View) -> list[str]:
        newest, home = view.newest, self._home(view.key)
        if newest is None or newest.closed or view.forked or view.avoid:
            return []
        if len(view.seen) < len(self._copies.placement.servers):
            return []
        if any(view.seen[name] != newest.version for name in home):
            return []
        return [
            name
            for name, entry in view.entries.items()
            if name not in home and not entry.closed and contains(newest, entry)
        ]
