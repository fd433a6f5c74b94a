"""The store in the process itself: a dictionary and a lock. It is lost with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Final

from msgspec.structs import replace

from coatcheck.pool import rules, slots
from coatcheck.pool.commands import Both, Command, CommandOutcome, Waiting
from coatcheck.pool.errors import PoolError, PoolFull
from coatcheck.pool.state import FAR, MAX_USERS, Policy, Ticket, UserState, copy_of, new_user

SWEEP_WHEN_FULL_EVERY_S: Final = 1.0
SOONER_S: Final = 0.001
"""By so much sooner something must change to wake who sleeps until it does: less is an error of rounding."""
UNWATCHED_S: Final = 3.0
"""Whoever gets a ticket watches it at once. One that nobody watches for so long is nobody's: its caller was interrupted
(Ctrl-C) before it knew of it."""


class MemoryTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`. ``clock``: seconds that never go back.

    ``states`` and ``lock`` are open to the pool's own fast path; whoever holds the lock may use the rules directly,
    unless the state is ``changing``: then a signal handler has interrupted a command of its own thread.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic, max_users: int = MAX_USERS) -> None:
        # Waiting callers cannot die without the process, so their tickets need no life.
        self.policy = replace(policy, ticket_life_s=FAR)
        self.clock = clock
        self._max_users = max_users
        self.lock = threading.RLock()
        self.changing = False
        self.states: dict[str, UserState] = {}
        self._wakers: dict[tuple[str, int], Callable[[], None]] = {}
        self._asks_at: dict[tuple[str, int], float] = {}  # when those who watch a ticket ask again by themselves
        self._unwatched: dict[tuple[str, int], float] = {}  # since when
        self._swept_at = -FAR
        self._shared: dict[str, tuple[bytes, float]] = {}  # with when it may be forgotten

    def apply(self, user: str, command: Command) -> CommandOutcome:
        with self.lock:
            if self.changing:
                raise PoolError("this thread is in the pool already: a signal handler interrupted it")
            self.changing = True
            try:
                outcome, wakers = self._apply(user, command)
            finally:
                self.changing = False
        for wake in wakers:  # without the lock: they take others
            wake()
        return outcome

    def _apply(self, user: str, command: Command) -> tuple[CommandOutcome, list[Callable[[], None]]]:
        now, state = self.clock(), self.states.get(user)
        if state is None:
            outcome = self._apply_to_new(user, command)
            state = self.states.get(user)
        else:
            if state.tickets:
                self._drop_unwatched(user, state, now)
            outcome = rules.apply(state, self.policy, now, command)
        if state is None or not state.tickets:
            return outcome, []
        reply = outcome.reply.second if isinstance(outcome.reply, Both) else outcome.reply
        if isinstance(reply, Waiting):
            place = user, reply.ticket
            if self._unwatched:  # if they are nobody's, nobody else tells those behind them
                reply = replace(reply, again_s=min(reply.again_s, UNWATCHED_S))
                both = outcome.reply
                outcome = replace(outcome, reply=replace(both, second=reply) if isinstance(both, Both) else reply)
            self._asks_at[place] = now + reply.again_s
            if place not in self._wakers:
                self._not_watched(place)
        return outcome, self.to_wake(user, state)

    def _drop_unwatched(self, user: str, state: UserState, now: float) -> None:
        def waits(ticket: Ticket) -> bool:
            place = user, ticket.number
            return place in self._wakers or now - self._unwatched.get(place, -FAR) < UNWATCHED_S

        if not all(map(waits, state.tickets)):
            for ticket in [ticket for ticket in state.tickets if not waits(ticket)]:
                self._asks_at.pop((user, ticket.number), None)
                state.tickets.remove(ticket)

    def _not_watched(self, place: tuple[str, int]) -> None:
        now = self.clock()
        for other in [other for other, since in islice(self._unwatched.items(), 2) if now - since >= UNWATCHED_S]:
            del self._unwatched[other]  # two of the oldest, for one that is new
        self._unwatched[place] = now

    def start_anew(self) -> None:
        """After a fork the child must not use its parent's tokens."""
        self.lock = threading.RLock()
        self.changing = False
        self.states = {}
        self._wakers = {}
        self._asks_at = {}
        self._unwatched = {}
        self._shared = {}

    def wants_sweep(self, user: str) -> bool:
        """Whether ``user`` is new and there is no room: then the expired tokens of others should make it."""
        with self.lock:
            now = self.clock()
            full = len(self.states) >= self._max_users and user not in self.states
            if not full or now - self._swept_at < SWEEP_WHEN_FULL_EVERY_S:
                return False
            self._swept_at = now
            return True

    def _apply_to_new(self, user: str, command: Command) -> CommandOutcome:
        if len(self.states) >= self._max_users:
            self._forget_idle()
            if len(self.states) >= self._max_users:
                raise PoolFull(f"the pool has {self._max_users} users already")
        state = new_user(time.time_ns() // 1000)
        outcome = rules.apply(state, self.policy, self.clock(), command)
        if state.fence > state.first_fence or not state.is_idle(self.clock()):
            self.states[user] = state  # who asked in vain for an unknown user leaves nothing behind
        return outcome

    def to_wake(self, user: str, state: UserState) -> list[Callable[[], None]]:
        """Those whose turn it is. Call it with the lock held, and them without."""
        now = self.clock()
        numbers = slots.turns(state, self.policy, now)
        if any((user, number) not in self._wakers for number in numbers):
            numbers = [ticket.number for ticket in state.tickets]
        # The first of the others must not sleep past the moment when something changes by itself.
        for first in slots.heads(state):
            asks_at = self._asks_at.get((user, first.number))
            changes_at = slots.changes_at(state, self.policy, now, first.credentials)
            if asks_at is not None and changes_at < asks_at - SOONER_S:
                numbers.append(first.number)
        return [wake for number in numbers if (wake := self._wakers.get((user, number))) is not None]

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        with self.lock:
            self._wakers[user, ticket] = wake
            self._unwatched.pop((user, ticket), None)
        wake()  # its turn may have come before

    def unwatch(self, user: str, ticket: int) -> None:
        with self.lock:
            self._wakers.pop((user, ticket), None)
            self._asks_at.pop((user, ticket), None)
            self._not_watched((user, ticket))

    def pauses(self) -> tuple[float, float]:
        return FAR, FAR

    def is_turn(self, user: str, ticket: int) -> bool:
        """Whoever waits is woken, and need not look."""
        return True

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        found = {}
        for name in list(self.states) if user is None else [user]:
            with self.lock:  # one user at a time, so that no borrower waits for all of them
                state = self.states.get(name)
                if state is not None:
                    found[name] = copy_of(state), self.clock()
        return found

    def forget(self) -> None:
        with self.lock:
            self._forget_idle()

    def _forget_idle(self) -> None:
        now = self.clock()
        for name in [name for name, state in self.states.items() if state.is_idle(now)]:
            del self.states[name]

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        return self._stored(user), self.clock()

    def _stored(self, user: str) -> bytes | None:
        found = self._shared.get(user)
        return None if found is None else found[0]

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        with self.lock:
            if self._stored(user) not in (old, new):
                return False
            now = self.clock()
            if new is None:
                self._shared.pop(user, None)
                return True
            if len(self._shared) >= self._max_users and user not in self._shared:
                self._shared = {name: kept for name, kept in self._shared.items() if now < kept[1]}
                if len(self._shared) >= self._max_users:
                    raise PoolFull(f"the pool has {self._max_users} users already")
            self._shared[user] = new, now + keep_s
            return True

    def shared_users(self) -> list[str]:
        return list(self._shared)

    def close(self) -> None:
        """Nothing to let go."""


class AsyncMemoryTokenStore:
    """The same store for asyncio; pools of several event loops and threads may share one."""

    def __init__(self, inner: MemoryTokenStore) -> None:
        self.inner = inner

    async def apply(self, user: str, command: Command) -> CommandOutcome:
        return self.inner.apply(user, command)

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self.inner.watch(user, ticket, wake)

    def unwatch(self, user: str, ticket: int) -> None:
        self.inner.unwatch(user, ticket)

    def pauses(self) -> tuple[float, float]:
        return self.inner.pauses()

    async def is_turn(self, user: str, ticket: int) -> bool:
        return self.inner.is_turn(user, ticket)

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        return self.inner.look(user)

    async def forget(self) -> None:
        self.inner.forget()

    async def read_shared(self, user: str) -> tuple[bytes | None, float]:
        return self.inner.read_shared(user)

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        return self.inner.swap_shared(user, old, new, keep_s)

    async def shared_users(self) -> list[str]:
        return self.inner.shared_users()

    async def close(self) -> None:
        self.inner.close()
