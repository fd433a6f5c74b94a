"""The rules of shared tokens, written once: one user's state, a command and the time go in, an answer comes out.

A shared token is in many hands at once, so there are no leases and no queue: there is what is current, and at most one
login at a time that replaces it. Whether a login may begin, and when the next one may after a failure, the rules of
leases say (:mod:`coatcheck.pool.rules`): each login holds a slot there until ``login_timeout``. What must always hold:

* at most one login of the same credentials at a time, unless one took longer than ``login_timeout``;
* a token is given only to the credentials that opened it, and never after its end;
* what is current is replaced by what a later login brought, and never by anything older;
* a token is taken back by its number, so a refusal that comes late takes nothing newer back.

What an upstream gave to find its own state again stands here, too, by credentials: it outlives all tokens, leased ones
as well, and is written as rarely.
"""

from __future__ import annotations

from hmac import compare_digest as same
from typing import Final

import msgspec

from coatcheck.pool import rules as logins
from coatcheck.pool.commands import (
    Acquire,
    Granted,
    LoginDone,
    LoginEnded,
    MustLogIn,
    NoToken,
    NotTried,
    Release,
)
from coatcheck.pool.commands import CleanUp as CleanUpLogins
from coatcheck.pool.commands import Reset as ResetLogins
from coatcheck.pool.refusals import PROTECTED_MAX_S, counted, is_believed, protected_s
from coatcheck.pool.slots import clamp, known_as, note_success
from coatcheck.pool.state import FAR, NO_LIMIT, Policy, UserState, new_user

MAX_ENTRIES: Final = 8
"""Tokens of different credentials that one user may have; of more, the one whose end comes first is forgotten."""

REFRESH_KEPT_S: Final = 30 * 86_400.0
"""How long a refresh token is kept after the login that brought it."""


class SharedEntry(msgspec.Struct):
    """The token of some credentials. ``value``: ``None`` once it was refused. Lengths count from ``opened_at``."""

    credentials: bytes
    number: int
    value: str | None
    opened_at: float
    span_s: float
    refresh_s: float  # when the login ahead of the end is due
    refresh_token: str | None = None
    refusals: int = 0  # refused tokens in a row, each soon after its login
    refused_at: float = -FAR  # the last of them

    def protected_until(self) -> float:
        return self.opened_at + protected_s(self.refusals)

    def ends_at(self) -> float:
        """When nothing of it is of any use any more."""
        live_s = self.span_s if self.value is not None else 0.0
        kept_s = REFRESH_KEPT_S if self.refresh_token is not None else 0.0
        return max(self.opened_at + max(live_s, kept_s), self.refused_at + 2 * PROTECTED_MAX_S)

    def __repr__(self) -> str:
        return f"<SharedEntry {self.number}>"


class UpstreamState(msgspec.Struct):
    """By what the upstream finds its state of a user again (mission, the fourth document): for the next login."""

    credentials: bytes
    value: str
    kept_at: float
    keep_s: float

    def ends_at(self) -> float:
        return self.kept_at + self.keep_s

    def __repr__(self) -> str:
        return "<UpstreamState>"


class SharedState(msgspec.Struct):
    """All that is shared of one user. ``logins``: who logs in now, back-offs and rate, as of leases; no tokens."""

    logins: UserState
    entries: list[SharedEntry] = msgspec.field(default_factory=list)
    upstream: list[UpstreamState] = msgspec.field(default_factory=list)

    def is_idle(self, now: float) -> bool:
        """Nothing in it that anybody could miss."""
        return not self.entries and not self.upstream and self.logins.is_idle(now)

    def ends_at(self) -> float:
        """When the last of it ends, if nobody touches it any more."""
        failing = [failing.ends_at() for failing in self.logins.failing]
        ends = [entry.ends_at() for entry in self.entries] + [kept.ends_at() for kept in self.upstream]
        return max([*ends, *failing, self.logins.ends_at(), self.logins.rate_at], default=-FAR)


# -- commands


class Begin(msgspec.Struct, frozen=True):
    """What is current, please, and a login if one is due: before the end, or because there is nothing.

    ``credentials``: the caller's, as keyed hashes by each key of the pool, the one that is stored first; empty: none.
    """

    credentials: tuple[bytes, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """The login that holds ``fence`` succeeded. Without a ``refresh_token`` the one of before stays (RFC 6749, 6)."""

    fence: int
    value: str
    span_s: float
    refresh_before_s: float
    refresh_token: str | None = None

    def __repr__(self) -> str:
        return f"<Finish {self.fence}>"


class KeepRefresh(msgspec.Struct, frozen=True):
    """The login that held ``fence`` came too late, but with a ``refresh_token``: the one before it may be dead."""

    fence: int
    refresh_token: str
    credentials: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<KeepRefresh {self.fence}>"


class RefreshFailed(msgspec.Struct, frozen=True):
    """The login that holds ``fence`` failed, was ``refused`` for good, or (``failed=False``) was given up.

    ``refresh_token``: the one that it tried.
    """

    fence: int
    failed: bool = True
    refused: bool = False
    credentials: tuple[bytes, ...] = ()
    refresh_token: str | None = None

    def __repr__(self) -> str:
        return f"<RefreshFailed {self.fence}>"


class Invalidate(msgspec.Struct, frozen=True):
    """The upstream refused token ``number``."""

    number: int


class KeepUpstream(msgspec.Struct, frozen=True):
    """A login with these credentials brought ``value`` (empty: there is nothing to find again), kept so long."""

    value: str
    keep_s: float
    credentials: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return "<KeepUpstream>"


class DropShared(msgspec.Struct, frozen=True):
    """An operator drops one token, or all (``None``)."""

    number: int | None = None


class ResetShared(msgspec.Struct, frozen=True):
    """An operator forgets everything: tokens, refresh tokens, upstream states, back-offs, logins under way."""


class EndShared(msgspec.Struct, frozen=True):
    """Forget what has ended."""


Command = (
    Begin | Finish | KeepRefresh | RefreshFailed | Invalidate | KeepUpstream | DropShared | ResetShared | EndShared
)


# -- answers


class Current(msgspec.Struct, frozen=True):
    """What is current. ``refresh_in_s``: not positive when a login is due; ``protected_s``: so long it is
    not taken back (:mod:`coatcheck.pool.refusals`)."""

    number: int
    value: str
    remaining_s: float
    refresh_in_s: float
    protected_s: float

    def __repr__(self) -> str:
        return f"<Current {self.number}, {self.remaining_s:g} s>"


class Begun(msgspec.Struct, frozen=True):
    """What is current (``None``: nothing), and about the login that is due, if one is: one of the others.

    ``fence``: log in now, then :class:`Finish` or :class:`RefreshFailed`. ``busy_s``: somebody else does, so long at
    most. ``limited_s``: none may begin before. ``refused``: the upstream refused these credentials for good.
    """

    current: Current | None
    fence: int = 0
    refresh_token: str | None = None
    busy_s: float = 0.0
    limited_s: float = 0.0
    refused: bool = False

    def __repr__(self) -> str:
        return f"<Begun {self.fence}, {self.current!r}>"


class Count(msgspec.Struct, frozen=True):
    """How many tokens were taken back; ``values``: those of them to log out."""

    count: int
    values: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Count {self.count}>"


class SlotGone(msgspec.Struct, frozen=True):
    """The slot of that login is somebody else's by now, or nobody's."""


Reply = Current | Begun | Count | SlotGone


# -- rules


def new_shared(now_us: int) -> SharedState:
    """``now_us``: the store's wall clock in microseconds, where numbers start."""
    return SharedState(new_user(now_us))


def login_policy(policy: Policy) -> Policy:
    """The limits of the logins: the pool's, with a slot for the credentials of each token that may be kept."""
    return msgspec.structs.replace(
        policy, per_user=MAX_ENTRIES, max_uses=NO_LIMIT, lease_s=policy.login_timeout_s, signs_out=False
    )


def current_of(state: SharedState, policy: Policy, now: float, credentials: tuple[bytes, ...]) -> Current | None:
    """What is current for these credentials, without changing anything."""
    for entry in state.entries:
        mine = any(same(entry.credentials, each) for each in credentials or (b"",))
        if mine and entry.value is not None:
            # A moment that is still to come was written under a clock that was ahead.
            age_s = max(0.0, now - entry.opened_at)
            if age_s + policy.min_remaining_s < entry.span_s:
                left_s = protected_s(entry.refusals) - age_s
                return Current(
                    entry.number, entry.value, entry.span_s - age_s, entry.refresh_s - age_s, max(0.0, left_s)
                )
    return None


def upstream_of(state: SharedState, now: float, credentials: tuple[bytes, ...]) -> str | None:
    """What these credentials' last login brought to find the upstream's state again, without changing anything."""
    for kept in state.upstream:
        if min(kept.kept_at, now) + kept.keep_s > now and any(
            same(kept.credentials, each) for each in credentials or (b"",)
        ):
            return kept.value
    return None


def apply(state: SharedState, policy: Policy, now: float, command: Command) -> Reply:
    """Change ``state`` as ``command`` asks, and say what came of it."""
    limits = login_policy(policy)
    clamp(state.logins, limits, now)
    for entry in state.entries:
        entry.opened_at = min(entry.opened_at, now)
        entry.refused_at = min(entry.refused_at, now)
    state.entries = [entry for entry in state.entries if now < entry.ends_at()]
    for kept in state.upstream:
        kept.kept_at = min(kept.kept_at, now)
    state.upstream = [kept for kept in state.upstream if now < kept.ends_at()]
    if isinstance(command, Begin):
        return _begin(state, policy, limits, now, command)
    if isinstance(command, Finish):
        return _finish(state, policy, limits, now, command)
    if isinstance(command, KeepRefresh):
        return _keep_refresh(state, now, command)
    if isinstance(command, RefreshFailed):
        return _fail(state, limits, now, command)
    if isinstance(command, Invalidate):
        return _invalidate(state, now, command)
    if isinstance(command, KeepUpstream):
        return _keep_upstream(state, now, command)
    if isinstance(command, DropShared):
        return _drop(state, now, command.number)
    logins.apply(state.logins, limits, now, ResetLogins() if isinstance(command, ResetShared) else CleanUpLogins())
    if isinstance(command, EndShared):
        return Count(0)
    dropped = _drop(state, now, None)
    state.entries, state.upstream = [], []
    return dropped


def _begin(state: SharedState, policy: Policy, limits: Policy, now: float, command: Begin) -> Begun:
    mine = _mine(state, command.credentials)
    current = current_of(state, policy, now, (mine,))
    if current is not None and current.refresh_in_s > 0:
        return Begun(current)
    under_way = [
        holding.deadline - now
        for holding in state.logins.leases.values()
        if same(holding.credentials, mine) and now < holding.deadline
    ]
    if under_way:
        return Begun(current, busy_s=max(under_way))
    proven = state.logins.proven
    if current is not None:
        state.logins.proven = mine  # they opened what is current
    reply = logins.apply(state.logins, limits, now, Acquire(may_wait=False, credentials=command.credentials)).reply
    state.logins.proven = proven
    if isinstance(reply, MustLogIn):
        entry = _entry(state, mine)
        return Begun(current, reply.fence, None if entry is None else entry.refresh_token)
    if isinstance(reply, NotTried):
        return Begun(current, refused=True)
    assert isinstance(reply, NoToken)
    if reply.limited_s > 0:
        return Begun(current, limited_s=reply.limited_s)
    # As many other credentials of this user log in as may.
    return Begun(current, busy_s=policy.login_timeout_s)


def _mine(state: SharedState, credentials: tuple[bytes, ...]) -> bytes:
    """The one hash by which the state knows these credentials; what another key of the pool wrote is renamed."""
    mine = known_as(state.logins, credentials)
    known: list[SharedEntry | UpstreamState] = [*state.entries, *state.upstream]
    for entry in known:
        if any(same(entry.credentials, former) for former in credentials[1:]):
            entry.credentials = mine
    return mine


def _entry(state: SharedState, mine: bytes) -> SharedEntry | None:
    return next((entry for entry in state.entries if same(entry.credentials, mine)), None)


def _finish(state: SharedState, policy: Policy, limits: Policy, now: float, command: Finish) -> Reply:
    holding = state.logins.leases.get(command.fence)
    done = logins.apply(state.logins, limits, now, LoginDone(command.fence, "", FAR)).reply
    if not isinstance(done, Granted) or holding is None:
        return SlotGone()
    mine = holding.credentials
    logins.apply(state.logins, limits, now, Release(command.fence, keep=False, sign_out=False))
    before = _entry(state, mine)
    refresh_token, refusals, refused_at = command.refresh_token, 0, -FAR
    if before is not None:
        state.entries.remove(before)
        refresh_token = refresh_token or before.refresh_token
        refusals, refused_at = before.refusals, before.refused_at
    _make_room(state)
    # Never more than half of its life ahead, or a short-lived token would be renewed without end.
    refresh_s = max(command.span_s - command.refresh_before_s, command.span_s / 2)
    entry = SharedEntry(mine, command.fence, command.value, now, command.span_s, refresh_s, refresh_token)
    entry.refusals, entry.refused_at = refusals, refused_at
    state.entries.append(entry)
    return Begun(current_of(state, policy, now, (mine,)))


def _keep_refresh(state: SharedState, now: float, command: KeepRefresh) -> Reply:
    mine = _mine(state, command.credentials)
    entry = _entry(state, mine)
    if entry is None:
        _make_room(state)
        state.entries.append(SharedEntry(mine, command.fence, None, now, 0.0, 0.0, command.refresh_token))
    elif entry.number < command.fence:
        entry.refresh_token = command.refresh_token
    else:
        return Count(0)  # a later login has brought its own
    note_success(state.logins, mine)
    return Count(0)


def _keep_upstream(state: SharedState, now: float, command: KeepUpstream) -> Count:
    mine = _mine(state, command.credentials)
    others = [kept for kept in state.upstream if not same(kept.credentials, mine)]
    if command.value:
        others.sort(key=UpstreamState.ends_at)
        others = [*others[-(MAX_ENTRIES - 1) :], UpstreamState(mine, command.value, now, command.keep_s)]
    state.upstream = others
    return Count(0)


def _make_room(state: SharedState) -> None:
    while len(state.entries) >= MAX_ENTRIES:
        state.entries.remove(min(state.entries, key=SharedEntry.ends_at))


def _fail(state: SharedState, limits: Policy, now: float, command: RefreshFailed) -> Reply:
    holding = state.logins.leases.get(command.fence)
    entry = _entry(state, _mine(state, command.credentials) if holding is None else holding.credentials)
    # What was refused is what was tried: meanwhile another one may have been kept.
    refused = command.refused and (entry is None or entry.refresh_token == command.refresh_token)
    ended = LoginEnded(command.fence, command.failed, refused, command.credentials)
    logins.apply(state.logins, limits, now, ended)
    if holding is None:
        return SlotGone()
    if refused and entry is not None:
        entry.refresh_token = None
    return Count(0)


def _invalidate(state: SharedState, now: float, command: Invalidate) -> Count:
    for entry in state.entries:
        if entry.number == command.number and entry.value is not None:
            age_s = now - entry.opened_at
            if not is_believed(entry.refusals, age_s):
                return Count(0)
            entry.value, entry.refused_at = None, now
            entry.refusals = counted(entry.refusals, age_s)
            return Count(1)
    return Count(0)


def _drop(state: SharedState, now: float, number: int | None) -> Count:
    """The refresh token stays: it is for the login, as a password is."""
    values = []
    for entry in state.entries:
        if number in (None, entry.number) and entry.value is not None:
            if now < entry.opened_at + entry.span_s:
                values.append(entry.value)
            entry.value = None
    return Count(len(values), tuple(values))
