"""Whether a lease goes on by itself, because every link to the session servers was heard lately (protocol section 4).

A link is one connection to one process. It delivers notices and replies in order, so the answer to a heart-beat proves
that every notice from before the heart-beat was sent has come. No clock, no sockets: who has the links says what was
heard.
"""

from __future__ import annotations

from coatcheck.replication.effects import Surroundings
from coatcheck.replication.placement import QUORUM_FROM, Placement
from coatcheck.replication.policy import ReplicationPolicy

CHECK_EVERY_S = 30.0
"""A session is checked after so long at the latest, whatever the links say: that bounds what a session server that
keeps notices to itself, or an unfinished close, can do."""
BEATS_PER_LEASE = 4
SHORTEST_BEAT_S = 0.05
LONGEST_BEAT_S = 5.0


class Links:
    """What one web server knows of its links; its world says which of them are up.

    When one is lost or made, all leases end (:meth:`coatcheck.replication.repair.Repair.lost_server`). What was heard
    on the connection before is older than any lease that is earned then, so it makes none of them longer.
    """

    def __init__(self, placement: Placement, policy: ReplicationPolicy, world: Surroundings) -> None:
        self._placement = placement
        self._lease_s = policy.lease_s
        self._world = world
        self._heard: dict[str, float] = {}
        """Per session server: when the newest heart-beat was sent that was answered."""
        self.prolong = policy.lease_s > 0 and can_prolong(placement, policy)
        """Whether leases go on here at all."""
        self.beyond_s = max(0.0, CHECK_EVERY_S - policy.lease_s)
        """For how long a lease may go on after it would be over."""
        self.heard_until = 0.0
        """Monotonic seconds: until then every link that is up was heard within one lease, and they are enough."""

    @property
    def beat_s(self) -> float:
        """How often each link is to be heard."""
        return min(max(SHORTEST_BEAT_S, self._lease_s / BEATS_PER_LEASE), LONGEST_BEAT_S)

    def heard(self, server: str, sent_at: float) -> None:
        """A heart-beat that was sent at this moment on the present link was answered."""
        self._heard[server] = sent_at
        up = [name for name in self._placement.servers if self._world.reachable(name)]
        enough = self.prolong and len(up) >= self._placement.read_quorum
        oldest = min((self._heard.get(name, 0.0) for name in up), default=0.0)
        self.heard_until = oldest + self._lease_s if enough and oldest else 0.0


def can_prolong(placement: Placement, policy: ReplicationPolicy) -> bool:
    """Whether what claims and closes have in common with a lease is sure to be one session server at least: it is not
    where answers are not counted, and some copies are on none of two servers."""
    if policy.too_few_answers == "serve":
        return False
    return len(placement.servers) >= QUORUM_FROM or placement.wanted == len(placement.servers)


def close_quorum(placement: Placement, policy: ReplicationPolicy) -> int:
    """So many tombstones that every read quorum, and every set of servers that gave a lease, has one of them."""
    if policy.too_few_answers == "serve":
        return 1
    return max(placement.write_quorum, lease_breakers(placement) if can_prolong(placement, policy) else 1)


def lease_breakers(placement: Placement) -> int:
    """So many session servers that every set of as many as copies are wanted has one of them."""
    return len(placement.servers) - placement.wanted + 1
