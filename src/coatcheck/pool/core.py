"""What the pools for threads and for asyncio have in common: settings, clocks, and no waiting."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
import weakref
from functools import partial
from typing import Any, TypeVar

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.pool.anomalies import Watch
from coatcheck.pool.audit import AuditKind, PoolAudit
from coatcheck.pool.classic import TokenObject
from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    Command,
    Extend,
    Granted,
    LogInAhead,
    LoginDone,
    Parting,
    Release,
    Reply,
    TakeIdle,
    Then,
)
from coatcheck.pool.credentials import Credentials
from coatcheck.pool.duration import Duration, seconds
from coatcheck.pool.errors import LoginFailed, LoginRefused, PoolClosed, PoolFull, StoreUnavailable
from coatcheck.pool.events import PoolEvent, PoolEventKind, tell
from coatcheck.pool.flows import Flow, Fresh, LogIn, acquire
from coatcheck.pool.held import Held
from coatcheck.pool.inspection import TokenRow, UserStats, token_rows, user_stats
from coatcheck.pool.leaks import HeldLong
from coatcheck.pool.lines import Lines, Watched
from coatcheck.pool.live import LiveLeases
from coatcheck.pool.options import Login, PoolOptions, Settings
from coatcheck.pool.payload import unpack
from coatcheck.pool.rules import give_back_quickly, take_quickly
from coatcheck.pool.shared.flows import Refresh, SharedBox, SharedFlow, find_upstream, keep_upstream
from coatcheck.pool.shared.rules import Count
from coatcheck.pool.shared.seen import SharedLines
from coatcheck.pool.slots import is_overdue, is_spent
from coatcheck.pool.state import FAR, MAX_USERS, Policy, UserState
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.memory import MemoryTokenStore
from coatcheck.tokens.keyring import KeyRing

T = TypeVar("T")

_pools: weakref.WeakSet[PoolCore] = weakref.WeakSet()
_abandoned: list[object] = []


class PoolCore:
    """The part of a pool that neither blocks nor awaits."""

    lines: Lines

    def __init__(self, login: Login | None, options: PoolOptions) -> None:
        self.settings = Settings(login, options)
        self.memory: MemoryTokenStore | None = None
        self.clock = time.monotonic
        if self.settings.store is None:
            self.clock = self.settings.clock
            self.memory = MemoryTokenStore(self.settings.policy, self.settings.clock, self.settings.max_users)
        ring = self.settings.ring() if self.memory is None else KeyRing([os.urandom(32)])
        self.credentials = Credentials(ring, self.settings.name)
        self.shared_box = SharedBox(ring, self.settings.name, self.settings.policy)
        self.shared_lines = SharedLines(self.clock, self.settings.policy.min_remaining_s, others=self.memory is None)
        # The fast path; None: every lease takes the whole way.
        self.quick = self.memory if self.settings.check_after_s == self.settings.leak_after_s == FAR else None
        self.audit: PoolAudit | None = None
        if self.settings.is_audited():
            self.quick = None
            self.audit = self._new_audit()
        self.leaks: HeldLong | None = None
        if self.settings.leak_after_s != FAR:
            self.leaks = HeldLong(self.settings.leak_after_s, self._held_long)
        self.closed = False
        self.keeps = True  # until what it has is dropped
        self.ended = False  # closed, and all that it has is dropped; one whose close was interrupted is not
        self._not_kept: set[str] = set()
        self.live = LiveLeases(self.clock)
        self.generation = 0  # how often this process was forked since
        _pools.add(self)

    def __repr__(self) -> str:
        where = "in process" if self.memory is not None else str(self.settings.store).partition(":")[0]
        return f"<{type(self).__name__} {self.settings.name!r}, {where}{', closed' if self.closed else ''}>"

    def new_lines(self, store: Watched) -> Lines:
        return Lines(store, self.settings.policy, self.clock, random.random, threading.RLock())

    def box(self) -> StateBox:
        return StateBox(self.settings.ring(), self.settings.name, self.settings.policy)

    def report(self, kind: PoolEventKind, user: str, detail: str = "") -> None:
        """Tell the observer. Its own failure is told in the log, and changes nothing else."""
        tell(self.settings.on_event, PoolEvent(kind, user, detail))

    def _new_audit(self) -> PoolAudit:
        # It has a thread, so it must not keep the pool: one that nobody closes is to be noticed.
        settings = self.settings
        watch = None if settings.thresholds is None else Watch(settings.thresholds)
        return PoolAudit(settings.name, settings.caller, settings.on_audit, watch, partial(tell, settings.on_event))

    def _held_long(self, user: str, fence: int, detail: str) -> None:
        self.report(PoolEventKind.LEASE_HELD_LONG, user, detail)
        if self.audit is not None:
            self.audit.held_long(user, fence, detail)

    def audited(self, user: str, flow: Flow[T]) -> Flow[T]:
        """A flow that may get a lease, for whoever runs it."""
        if self.audit is None:
            return (yield from flow)
        try:
            result = yield from flow
        except LoginRefused as error:
            if error.__cause__ is None:  # else it was tried, and is told already
                self.audit.not_tried(user)
            raise
        if isinstance(result, Granted):
            self.audit.borrowed(user, result)
        return result

    def dropped_shared(self, user: str, reply: object) -> int:
        """An operator has dropped shared tokens; how many."""
        self.shared_lines.forget()
        count = reply.count if isinstance(reply, Count) else 0
        if count and self.audit is not None:
            self.audit.note(AuditKind.REMOVED, user, detail="shared")
        return count

    def logged_out(self, user: str, parting: Parting, error: BaseException | None = None) -> None:
        """A token was logged out, or could not be."""
        if error is not None:
            self.report(PoolEventKind.LOGOUT_FAILED, user, type(error).__name__)
        if self.audit is not None:
            kind = AuditKind.LOGGED_OUT if error is None else AuditKind.LOGOUT_FAILED
            detail = "" if error is None else type(error).__name__
            self.audit.note(kind, user, token=parting.token_id, detail=detail, caller="")

    def must_be_open(self, command: Command) -> None:
        """A closed pool takes back what is out, begins nothing, and keeps nothing in the end. Raises ``PoolClosed``."""
        begins = isinstance(command, Acquire | Add | LogInAhead | TakeIdle)
        if self.closed and (begins or (isinstance(command, LoginDone) and not self.keeps)):
            raise PoolClosed("the pool is closed")

    def login_call(
        self, login: Login, effect: LogIn | Refresh, upstream_state: str | None
    ) -> tuple[Login, tuple[Any, ...]]:
        """The function to call, and with what."""
        if self.settings.login_takes_refresh_token:
            login = partial(login, refresh_token=effect.refresh_token if isinstance(effect, Refresh) else None)
        if self.settings.login_takes_upstream_state:
            login = partial(login, upstream_state=upstream_state)
        return login, (effect.user, effect.password) if self.settings.login_takes_password else (effect.user,)

    def finding_state(self, user: str, credentials: tuple[bytes, ...]) -> SharedFlow[str | None]:
        """What the last login left to find the upstream's state again. Raises ``StoreUnavailable``: a login that does
        not know it would begin another one."""
        return (yield from find_upstream(self.shared_box, user, credentials))

    def keeping_state(self, user: str, credentials: tuple[bytes, ...], value: str) -> SharedFlow[None]:
        """For the next login. That it cannot be kept is told; the token is as good without."""
        try:
            keep_s = self.settings.keep_upstream_state_s
            yield from keep_upstream(self.shared_box, user, credentials, value, keep_s)
        except (StoreUnavailable, PoolFull) as error:
            detail = f"the upstream's state was not kept: {type(error).__name__}"
            self.report(PoolEventKind.STORE_UNAVAILABLE, user, detail)

    def fresh(self, user: str, result: object) -> Fresh:
        """Judge what a login returned. Raises ``LoginFailed``."""
        try:
            return self.settings.fresh(result, random.random())
        except ValueError as error:
            self.report(PoolEventKind.LOGIN_FAILED, user, str(error))
            raise LoginFailed(user, str(error)) from error

    def login_error(self, user: str, error: BaseException) -> LoginFailed:
        """What becomes of the callback's own error, which may hold secrets: only its type is told."""
        self.report(PoolEventKind.LOGIN_FAILED, user, type(error).__name__)
        return LoginRefused(user) if isinstance(error, LoginRefused) else LoginFailed(user, type(error).__name__)

    def settled(self, user: str, reply: Reply, sent_at: float) -> Reply:
        """A reply with the deadline on our clock: counted from before the command left, so never too late."""
        if type(reply) is Both:
            second: Any = self.settled(user, reply.second, sent_at)
            return msgspec.structs.replace(reply, second=second)
        if type(reply) is Granted:
            if self.memory is None:
                self.live.add(user, reply.fence, sent_at + reply.remaining_s)
            return msgspec.structs.replace(reply, deadline=sent_at + reply.remaining_s)
        return reply

    def acquiring(self, user: str, password: str | None, held: Held) -> Flow[Granted]:
        """What gets the lease ``held``."""
        wait_s, check_after_s = self.wait_s(held._wait), self.settings.check_after_s
        flow = acquire(user, password, wait_s, self.lines, held._hashes(), check_after_s=check_after_s)
        return flow if self.audit is None else self.audited(user, flow)

    def logs_out_when_closed(self, log_out: bool | None) -> bool:
        """``log_out`` as of ``close``; without it, those of this process alone: a shared store's are for the others."""
        if log_out not in (None, True, False):
            raise ConfigError("log_out: True, False, or None: what this process alone has")
        return self.memory is not None if log_out is None else log_out

    def must_stop_dropping(self, until: float) -> bool:
        """Whether time is up for ``close``; that the tokens of a store are left to others then is told."""
        if self.memory is not None or time.monotonic() < until:
            return False
        self.report(PoolEventKind.LOGOUT_SKIPPED, "", "the time to close is up; the store keeps what it has")
        return True

    def __del__(self) -> None:
        """Who forgets a pool that has sessions leaves them to the upstream's time-out."""
        if getattr(self, "audit", None) is not None and self.audit is not None:
            self.audit.teller.end()
        if getattr(self, "ended", True) or not hasattr(self, "lines"):
            return
        if not self.settings.store and not (self.memory and self.memory.states):
            return
        warnings.warn(f"never closed: {self!r}", ResourceWarning, source=self, stacklevel=1)

    def giving_back(self, user: str, command: Command) -> None:
        """Take note, before the command is sent, that a lease is out no longer."""
        first = command.first if isinstance(command, Then) else command
        if isinstance(first, Release):
            self.live.discard((user, first.fence))
        if self.leaks is not None and isinstance(first, Release | Extend):
            (self.leaks.back if isinstance(first, Release) else self.leaks.extended)(user, first.fence)

    def checked_out(self, user: str, granted: Granted) -> TokenObject:
        """A lease as the classic calls show it; ``token_id`` is the fencing number, the deadline is the lease's."""
        if self.leaks is not None:
            self.leaks.lent(user, granted.fence)
        if self.audit is not None:
            self.audit.borrowed(user, granted)
        return _shown(granted.value, granted.deadline, granted.fence, granted.uses, self.settings.policy)

    def check_out_quickly(self, user: str, credentials: tuple[bytes, ...]) -> TokenObject | None:
        """A free token of this process, when nothing is out of the ordinary."""
        memory = self.quick
        state = None if memory is None else memory.states.get(user)
        if memory is None or state is None:
            return None
        with memory.lock:
            now = memory.clock()
            # Check out drops what is expired first (mission D5): the whole way does.
            if memory.changing or is_overdue(state, memory.policy, now):
                return None
            taken = take_quickly(state, memory.policy, now, credentials)
        if taken is None:
            return None
        fence, deadline, token = taken
        return _shown(token.value, deadline, fence, token.uses, memory.policy)

    def check_in_quickly(self, user: str, fence: int, value: str) -> bool:
        """Free it again, when nothing is out of the ordinary; else nothing changes."""
        memory = self.quick
        state = None if memory is None else memory.states.get(user)
        if memory is None or state is None:
            return False
        with memory.lock:
            return not memory.changing and give_back_quickly(state, memory.policy, memory.clock(), fence, value)

    def wait_s(self, wait: Duration | None) -> float:
        return self.settings.wait_s if wait is None else seconds("wait", wait)

    def held_leases(self) -> int:
        """How many leases are out: of this process, if the store is shared."""
        if self.memory is None:
            return len(self.live)
        with self.memory.lock:
            now = self.memory.clock()
            holdings = [holding for state in self.memory.states.values() for holding in state.leases.values()]
        return sum(now < holding.deadline for holding in holdings)  # what is overdue is nobody's any more

    def users_to_keep_ready(self, states: dict[str, tuple[UserState, float]]) -> list[str]:
        """Those who have tokens that no password opened, and too few of them ready."""
        least, policy = self.settings.min_idle, self.settings.policy
        found: list[str] = []
        for user, (state, now) in states.items() if least else ():
            idle = [token for token in state.free if not token.credentials and not is_spent(token, policy, now)]
            lent = (holding.token for holding in state.leases.values() if holding.token is not None)
            is_ours = idle or any(not token.credentials for token in lent)
            if is_ours and len(idle) < least and user not in self._not_kept:
                found.append(user)
        return found

    def note_ready(self, user: str, lasts: bool | None) -> None:
        """Where a login ahead brings nothing that lasts (its life is below ``min_remaining``), none is tried again."""
        if lasts is False and len(self._not_kept) < MAX_USERS:
            self._not_kept.add(user)

    def overdue(self, states: dict[str, tuple[UserState, float]]) -> list[str]:
        """The users for whom cleaning up has something to do; the others need no command."""
        return [user for user, (state, now) in states.items() if is_overdue(state, self.settings.policy, now)]

    def new_life_s(self) -> float:
        return self.settings.life_s(random.random())

    def stats_of(self, states: dict[str, tuple[UserState, float]]) -> dict[str, UserStats]:
        return {user: self._stats(user, state) for user, (state, _) in sorted(states.items())}

    def _stats(self, user: str, state: UserState) -> UserStats:
        """With the callers of this process as they are now, where the store knows how many they were."""
        stats = user_stats(state, self.settings.policy)
        waiting, tickets, timeouts = self.lines.waiting(user)
        waiting += sum(ticket.callers for ticket in state.tickets if ticket.number not in tickets)
        return msgspec.structs.replace(stats, waiting=waiting, timeouts_total=stats.timeouts_total + timeouts)

    def rows_of(self, states: dict[str, tuple[UserState, float]]) -> list[TokenRow]:
        return [row for user, (state, now) in sorted(states.items()) for row in token_rows(user, state, now)]

    def start_anew(self) -> None:
        """After a fork: the tokens and leases in this process are its parent's."""
        if self.memory is not None:
            self.memory.start_anew()
        self.live.clear()
        if self.leaks is not None:
            self.leaks.start_anew()
        if self.audit is not None:
            self.audit.start_anew()
        self.shared_lines.forget()
        self.generation += 1  # and nobody of those who wait is here

    def abandon(self, store: object) -> None:
        """Leave a store to the parent process: its connections are shared, so they must not even be closed here."""
        if self.memory is None:
            _abandoned.append(store)


def _shown(value: str, deadline: float, fence: int, uses: int, policy: Policy) -> TokenObject:
    token, payload = unpack(value)
    shown = TokenObject(token, deadline, token_id=fence)
    shown.payload = payload
    shown.usage_counter = uses
    shown.last_time_usage = uses >= policy.max_uses
    return shown


def number(fencing: Any) -> int:
    """Judge a fencing number from outside."""
    if isinstance(fencing, bool) or not isinstance(fencing, int) or not 0 < fencing < 2**63:
        raise ValueError("a fencing number is a whole number above 0")
    return fencing


def _start_anew() -> None:
    for pool in list(_pools):
        pool.start_anew()


os.register_at_fork(after_in_child=_start_anew)
