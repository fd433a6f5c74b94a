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

MAX_USERS = 10_000
"""Users of a pool without a store, if it has no ``max_users``."""

FAILURES_REMEMBERED_S = 600.0
"""How long after its back-off a user's failed logins still make the next back-off longer."""

REFUSED_S = 3_600.0
"""How long credentials that the upstream refused for good are not tried again, if nobody resets the user."""

MAX_FAILING = 8
"""So many failing credentials of one user are remembered. One more is tried when the oldest has kept its place for the
longest back-off; credentials that worked last, or that opened a live token, need no place."""

NONE_GIVEN = b""
"""In place of credentials: a login without any."""

NOBODYS = b"?"
"""In place of credentials that are not known (a state of the release before): no caller's are the same."""


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
    audited: bool = False  # outcomes say what happened to which token


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
    opened_at: float = -FAR  # by its login; not known of a token of the release before
    credentials: bytes = NONE_GIVEN  # the keyed hash of those that opened it: it is lent to nobody else

    def __repr__(self) -> str:
        return f"<Token {self.token_id}, used {self.uses} times>"


class Holding(msgspec.Struct):
    """A slot in somebody's hands until ``deadline``: with a token it is a lease, without one a login in progress."""

    token: Token | None
    deadline: float
    length_s: float = FAR  # from the last grant to the deadline
    credentials: bytes = NONE_GIVEN  # of a login: those that it tries


class Closing(msgspec.Struct):
    """A dropped token that is being logged out; it holds its slot, because the upstream still counts the session."""

    value: str
    deadline: float
    length_s: float = FAR

    def __repr__(self) -> str:
        return f"<Closing until {self.deadline:.3f}>"


class Ticket(msgspec.Struct, array_like=True):
    """A place in the queue; first come, first served. One that does not show up until ``alive_until`` is gone.

    ``callers``: so many of one process wait for it, when it was last heard of; they are served one after the other.
    """

    number: int
    alive_until: float
    credentials: bytes = NONE_GIVEN
    callers: int = 1

    def __repr__(self) -> str:
        return f"<Ticket {self.number}>"


class Failing(msgspec.Struct):
    """Credentials whose last login failed: ``failures`` in a row, the next not for ``retry_s`` from ``failed_at``."""

    credentials: bytes
    failures: int = 0
    failed_at: float = -FAR
    retry_s: float = 0.0
    keeps_place_s: float = 0.0  # others may have its place among ``MAX_FAILING`` so long after ``failed_at``
    refused: bool = False  # for good, so callers are told at once

    def retry_at(self) -> float:
        return self.failed_at + self.retry_s

    def ends_at(self) -> float:
        """When it is forgotten."""
        return self.retry_at() + (0.0 if self.refused else FAILURES_REMEMBERED_S)

    def __repr__(self) -> str:
        return f"<Failing, {self.failures} times{', refused' if self.refused else ''}>"


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
    failing: list[Failing] = field(default_factory=list)  # at most MAX_FAILING
    proven: bytes = NOBODYS  # the credentials of the last login that worked
    rate_at: float = -FAR  # when the last allowed login would have come, had they come evenly (GCRA)
    rate_s: float = FAR  # how far ahead of a login that may be at most
    next_deadline: float = FAR  # nothing is overdue before
    refusals: int = 0  # tokens refused one after another, each soon after its login (:mod:`.refusals`)
    refused_at: float = -FAR  # the last of them; what was opened before may be as dead
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
            and all(now >= failing.ends_at() for failing in self.failing)
        )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(UserState)


def copy_of(state: UserState) -> UserState:
    """A copy that shares nothing; many times faster than ``copy.deepcopy``."""
    return _DECODER.decode(_ENCODER.encode(state))


def new_user(now_us: int) -> UserState:
    """``now_us``: the store's wall clock in microseconds, where fencing and ticket numbers start."""
    return UserState(now_us, now_us, now_us)
