"""What the pool knows about one user: free tokens, leases, sessions being closed, waiting callers, and the limits.

Times are seconds on the clock of the store that keeps the state; nothing here reads a clock. What every lease writes to
is a dataclass, because attributes of msgspec's structs are several times slower to set; what every lease makes is a
struct, because those are made faster. Both are stored alike.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

import msgspec

FAR = math.inf
NO_LIMIT = sys.maxsize
FAILURES_REMEMBERED_S = 600.0
"""How long after its back-off a user's failed logins still make the next back-off longer."""


class Policy(msgspec.Struct, frozen=True):
    """The limits of a pool; every process that shares a store should use the same."""

    per_user: int = 4
    max_uses: int = 500  # NO_LIMIT: only expiry counts
    lease_s: float = 60.0
    min_remaining_s: float = 0.0
    signs_out: bool = False  # there is a logout: a dropped token holds its slot until the upstream forgot it
    login_timeout_s: float = 30.0
    logout_timeout_s: float = 10.0
    max_waiting: int = 1_000
    ticket_life_s: float = FAR  # how long a waiting caller is believed alive; FAR in one process
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    login_every_s: float = 0.0  # 0: logins that succeed are not limited
    login_burst: int = 1


@dataclass(slots=True, repr=False)
class Token:
    """A session at the upstream. ``uses`` starts at 1: a login and the call that it was made for are one use."""

    token_id: int
    value: str
    life_s: float  # from each use to expiry; jittered once, so that tokens of one minute do not expire in one minute
    expires_at: float
    dies_at: float = FAR  # the upstream's own word at login: no use prolongs it
    span_s: float = FAR  # how long after a refresh that is
    uses: int = 1
    used_at: float = 0.0

    def __repr__(self) -> str:
        return f"<Token {self.token_id}, used {self.uses} times>"


class Holding(msgspec.Struct):
    """A slot in somebody's hands until ``deadline``: with a token it is a lease, without one a login in progress."""

    token: Token | None
    deadline: float
    length_s: float = FAR  # from the last grant to the deadline


class Closing(msgspec.Struct):
    """A dropped token that is being logged out; it holds its slot, because the upstream still counts the session."""

    value: str
    deadline: float
    length_s: float = FAR

    def __repr__(self) -> str:
        return f"<Closing until {self.deadline:.3f}>"


class Ticket(msgspec.Struct, array_like=True):
    """A waiting caller; first come, first served. One that does not show up until ``alive_until`` is gone."""

    number: int
    alive_until: float


class Counters(msgspec.Struct):
    """What happened so far, for operators."""

    logins: int = 0
    login_failures: int = 0
    drops: int = 0
    lost: int = 0
    timeouts: int = 0
    not_leases: int = 0  # fencing numbers that were taken for something else


@dataclass(slots=True)
class UserState:
    """All of one user. Slots in use are ``free + leases + closing``, never more than ``per_user``.

    ``fence`` is the last fencing number. It starts at the store's clock in microseconds and only grows, so a number
    from before a lost store never fits a lease after it.
    """

    fence: int
    first_fence: int
    next_ticket: int = 1
    free: list[Token] = field(default_factory=list)  # the most recently used is last
    leases: dict[int, Holding] = field(default_factory=dict)
    closing: dict[int, Closing] = field(default_factory=dict)
    tickets: list[Ticket] = field(default_factory=list)
    failures: int = 0  # logins in a row that failed
    retry_at: float = -FAR
    retry_s: float = FAR  # from that failure to ``retry_at``
    rate_at: float = -FAR  # when the last allowed login would have come, had they come evenly (GCRA)
    rate_s: float = FAR  # how far ahead of a login that may be at most
    next_deadline: float = FAR  # nothing is overdue before
    limits: tuple[int, int] | None = None  # per_user and max_uses of whoever borrowed last; None: ask the pool
    counters: Counters = field(default_factory=Counters)

    def slots_used(self) -> int:
        return len(self.free) + len(self.leases) + len(self.closing)

    def ends_at(self) -> float:
        """When the last of it ends, if nobody touches it any more: tokens expire, leases are overdue."""
        holdings = [holding.deadline for holding in self.leases.values()]
        return max([*(token.expires_at for token in self.free), *holdings], default=-FAR)

    def is_idle(self, now: float) -> bool:
        """Nothing in it that anybody could miss (except counters): no token, no caller, no back-off still running."""
        return (
            not (self.free or self.leases or self.closing or self.tickets)
            and now >= self.rate_at
            and (not self.failures or now >= self.retry_at + FAILURES_REMEMBERED_S)
        )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(UserState)


def copy_of(state: UserState) -> UserState:
    """A copy that shares nothing; many times faster than ``copy.deepcopy``."""
    return _DECODER.decode(_ENCODER.encode(state))


def new_user(now_us: int) -> UserState:
    """``now_us``: the store's wall clock in microseconds, where fencing and ticket numbers start."""
    return UserState(now_us, now_us, now_us)
