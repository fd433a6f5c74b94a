"""One web server among the others: what it hosts, which numbers its claims get, and what owners tell each other
(protocol sections 3 and 4)."""

from __future__ import annotations

import math
from typing import ClassVar

from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Cache, Copy
from coatcheck.replication.effects import Flow, Pause, Surroundings, Tell
from coatcheck.replication.entry import Sealer
from coatcheck.replication.links import Links
from coatcheck.replication.notice import EVERYBODY, ClaimAnswer, Notice
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.puts import Puts
from coatcheck.replication.version import OWNER_BYTES, SERVER_ID_BYTES
from coatcheck.replication.view import View, Viewer


class Hosting:
    """What a web server has in its hand for its own sessions, and for those that it is about to take over.

    Its flows are :class:`coatcheck.replication.closes.Closes` and :class:`coatcheck.replication.copies.Copies`.
    """

    MAX_TRIED: ClassVar = 65_536

    def __init__(
        self,
        server_id: bytes,
        placement: Placement,
        policy: ReplicationPolicy,
        sealer: Sealer,
        world: Surroundings,
    ) -> None:
        """``server_id``: 3 bytes, different for each run of each web server; notices are sent to it."""
        if len(server_id) != SERVER_ID_BYTES:
            raise ValueError(f"a server ID has {SERVER_ID_BYTES} bytes, not {len(server_id)}")
        self.server_id = server_id
        self.placement = placement
        self.policy = policy
        self.cache = Cache(policy.max_sessions)
        self._hosted = self.cache.get
        self._leases_from = 0.0
        """A lease that ends by this moment (monotonic seconds) was earned before all leases were voided."""
        self._monotonic = world.monotonic
        self.sealer = sealer
        self.world = world
        self.viewer = Viewer(placement, policy, sealer, world, self.cache)
        self.puts = Puts(placement, policy, sealer, world, self.cache)
        self.links = Links(placement, policy, world)
        self._beyond_s = self.links.beyond_s
        self.under_replicated = self.puts.under_replicated
        self._tried: dict[bytes, int] = {}
        self._claiming: dict[bytes, Copy] = {}
        """Claims under way: the old owner may answer before the last session server does."""

    # -- leases ----------------------------------------------------------------------------------

    def void_leases(self) -> None:
        """Ask again before serving anything: this process was not running, and has heard no notices. What was sent
        before now earns no lease either. However many sessions are hosted, this is one assignment."""
        self.puts.distrust()
        if self._leases_from != math.inf:
            self._leases_from = self.world.monotonic() + self.policy.lease_s

    def suspend_leases(self) -> None:
        """Serve nothing from the cache, whatever is written or heard, until :meth:`resume_leases`."""
        self._leases_from = math.inf

    def resume_leases(self) -> None:
        """Leases that are earned from now on count again."""
        if self._leases_from == math.inf:
            self._leases_from = 0.0
            self.void_leases()

    def leased_until(self, copy: Copy) -> float:
        """Until when (monotonic seconds) a copy may be served without asking, as far as is known by now; 0.0 if it has
        no lease, or it was voided."""
        if copy.lease_until <= self._leases_from:
            return 0.0
        return max(copy.lease_until, min(self.links.heard_until, copy.lease_until + self._beyond_s))

    def _leases_over_at(self) -> float:
        """When no lease holds any more that was earned by now."""
        return self.world.monotonic() + self.policy.lease_over_s

    # -- messages from other web servers, and to them --------------------------------------------

    def on_message(self, message: Notice | ClaimAnswer) -> Tell | None:
        """Take a notice (stop serving from the cache, answer) or an answer (no one else serves any more).

        Notices are not sealed, so one of a close proves nothing: a tombstone has to be seen.
        """
        copy = self._claiming.get(message.key) or self.cache.get(message.key)
        if copy is None:
            if isinstance(message, Notice) and message.version.server_id != self.server_id:
                self.puts.distrust()  # its first write may be under way, or its copy in nobody's hands but a flow's
            return None
        own = copy.version.claim == message.version.claim
        now = self.world.monotonic()
        if isinstance(message, ClaimAnswer):
            if own:
                copy.alone_at = min(copy.alone_at, now + message.others_ms / 1000)
            return None
        if own or message.version.server_id == self.server_id:
            if message.version.epoch > copy.version.epoch and not message.closed:
                # A claim of ours that was given up has reached a session server after all: copies may differ.
                self.under_replicated.add(message.key)
            return None  # our own claim or close
        # Whatever its epoch: a close takes its epoch from an older look than our claim may have had.
        copy.no_lease_before = now
        copy.lease_until = 0.0
        self.cache.note_moved(copy)
        others_s = min(max(0.0, copy.alone_at - now), self.policy.lease_over_s)
        answer = ClaimAnswer(message.key, message.version, math.ceil(others_s * 1000))
        return Tell(message.version.server_id, answer.encode())

    def owners_shown(self, view: View) -> bytes:
        """The IDs of the web servers that own a copy which was shown, but for this one; all of them if none was. A
        session server notifies the owner that it has stored; each that takes a claim or a close is to notify these as
        well, for it may have lost what they stored there."""
        owners = {entry.version.server_id for entry in view.entries.values() if not entry.closed}
        return b"".join(sorted(owners - {self.server_id})) if owners else EVERYBODY

    # -- numbers of claims, and other things that every flow needs -------------------------------

    def _next_epoch(self, view: View) -> int:
        epoch = 1 + max(view.highest_epoch(), self._tried.pop(view.key, 0))
        if len(self._tried) >= self.MAX_TRIED:
            self._tried.pop(next(iter(self._tried)))
        self._tried[view.key] = epoch
        return epoch

    def _fresh_owner(self) -> bytes:
        return self.server_id + self.world.random_bytes(OWNER_BYTES - SERVER_ID_BYTES)

    def _wait_until(self, moment_s: float) -> Flow[None]:
        while (left_s := moment_s - self.world.monotonic()) > 0:
            yield Pause(left_s)

    def _report(self, kind: EventKind, key: bytes, detail: str) -> None:
        self.world.report(Event(kind, public_id(key), detail))
