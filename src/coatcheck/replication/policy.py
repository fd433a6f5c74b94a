"""What the operator decides about copies."""

from __future__ import annotations

from typing import Literal

import msgspec

Durability = Literal["async", "one", "all"]
BelowTarget = Literal["quorum", "degrade", "refuse"]
TooFewAnswers = Literal["refuse", "serve"]

HOUR_MS = 3_600_000
DRIFT = 0.01
"""By how much of a lease two steady clocks may run apart while it lasts."""


class ReplicationPolicy(msgspec.Struct, frozen=True):
    """``durability``: when a write is acknowledged (``async`` promises nothing).

    ``below_target``: what to do when fewer servers than wanted hold a copy: go on while they are a quorum, go on with
    any number, or refuse. ``too_few_answers``: whether to serve when, of three or more session servers, fewer
    than a read quorum answer. ``patience_s``: how long a request is refused while a session server that may have
    what its token promises is away; then it is anonymous. ``lease_s``: how long a
    cached session is served without asking; 0 where a check is cheap. ``tombstone_ms``: how long a
    closed session is remembered: the longest life of a token plus leeway. ``linger_ms``: how long session servers
    keep a session that has timed out, so that who comes back finds it expired, and closes it (mission A8).
    """

    durability: Durability = "all"
    below_target: BelowTarget = "quorum"
    too_few_answers: TooFewAnswers = "refuse"
    patience_s: float = 30.0
    lease_s: float = 2.0
    tombstone_ms: int = 13 * HOUR_MS
    linger_ms: int = 0
    max_tries: int = 8
    backoff_s: float = 0.01
    max_sessions: int = 100_000

    @property
    def lease_over_s(self) -> float:
        """After so long no lease holds that was earned before, by a clock that is a little slower than ours."""
        return self.lease_s * (1 + DRIFT)
