"""The store in the process itself: a dictionary and a lock. It is lost with the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.pool import rules, slots
from coatcheck.pool.commands import Command, CommandOutcome
from coatcheck.pool.errors import PoolFull
from coatcheck.pool.state import FAR, Policy, UserState, copy_of, new_user

MAX_USERS: Final = 10_000
SWEEP_WHEN_FULL_EVERY_S: Final = 1.0


class MemoryTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`. ``clock``: seconds that never go back.

    ``states`` and ``lock`` are open to the pool's own fast path; whoever holds the lock may use the rules directly.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        # Waiting callers cannot die without the process, so their tickets need no life.
        self.policy = msgspec.structs.replace(policy, ticket_life_s=FAR)
        self.clock = clock
        self.lock = threading.Lock()
        self.states: dict[str, UserState] = {}
        # Who sleeps: how to wake it, and when it looks again by itself.
        self._sleepers: dict[tuple[str, int], tuple[Callable[[], None], float]] = {}
        self._closed = False
        self._swept_at = -FAR
        self._shared: dict[str, tuple[bytes, float]] = {}  # with when it may be forgotten

    def apply(self, user: str, command: Command) -> CommandOutcome:
        with self.lock:
            state = self.states.get(user)
            if state is None:
                return self._apply_to_new(user, command)
            outcome = rules.apply(state, self.policy, self.clock(), command)
            if state.tickets:
                self.wake(user, state)
        return outcome

    def wake_all(self) -> None:
        """Wake every waiting caller, and let nobody sleep any more: the pool closes."""
        with self.lock:
            self._closed = True
            while self._sleepers:
                self._sleepers.popitem()[1][0]()

    def start_anew(self) -> None:
        """After a fork the child must not use its parent's tokens."""
        self.lock = threading.Lock()
        self.states = {}
        self._sleepers = {}
        self._shared = {}

    def wants_sweep(self, user: str) -> bool:
        """Whether ``user`` is new and there is no room: then the expired tokens of others should make it."""
        with self.lock:
            now = self.clock()
            full = len(self.states) >= MAX_USERS and user not in self.states
            if not full or now - self._swept_at < SWEEP_WHEN_FULL_EVERY_S:
                return False
            self._swept_at = now
            return True

    def _apply_to_new(self, user: str, command: Command) -> CommandOutcome:
        if len(self.states) >= MAX_USERS:
            self._forget_idle()
            if len(self.states) >= MAX_USERS:
                raise PoolFull(f"the pool has {MAX_USERS} users already")
        state = new_user(time.time_ns() // 1000)
        outcome = rules.apply(state, self.policy, self.clock(), command)
        if state.fence > state.first_fence or not state.is_idle(self.clock()):
            self.states[user] = state  # who asked in vain for an unknown user leaves nothing behind
        return outcome

    def wake(self, user: str, state: UserState) -> None:
        """Wake the callers whose turn it is. Call it with the lock held."""
        now = self.clock()
        for number in slots.turns(state, self.policy, now):
            self._rouse(user, number)
        # The first of the others must not sleep past the moment when something changes by itself.
        for first in slots.heads(state):
            sleeper = self._sleepers.get((user, first.number))
            if sleeper is not None and slots.changes_at(state, self.policy, now, first.credentials) < sleeper[1]:
                self._rouse(user, first.number)

    def _rouse(self, user: str, ticket: int) -> None:
        sleeper = self._sleepers.pop((user, ticket), None)
        if sleeper is not None:
            sleeper[0]()

    def sleep_until_woken(self, user: str, ticket: int, waker: Callable[[], None], timeout_s: float) -> float:
        """Register who to wake, and return how many seconds to sleep at most; 0: look again at once."""
        with self.lock:
            state, now = self.states.get(user), self.clock()
            if state is None or self._closed or ticket in slots.turns(state, self.policy, now):
                return 0.0
            again_at = now + timeout_s
            for first in slots.heads(state):
                if first.number == ticket:
                    again_at = min(again_at, slots.changes_at(state, self.policy, now, first.credentials))
            self._sleepers[user, ticket] = waker, again_at
            return again_at - now

    def stop_sleeping(self, user: str, ticket: int) -> None:
        self._sleepers.pop((user, ticket), None)

    def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        woken = threading.Lock()
        woken.acquire()
        try:
            sleep_s = self.sleep_until_woken(user, ticket, woken.release, timeout_s)
            if sleep_s > 0:
                woken.acquire(timeout=min(sleep_s, threading.TIMEOUT_MAX))
        finally:
            self.stop_sleeping(user, ticket)

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
            if len(self._shared) >= MAX_USERS and user not in self._shared:
                self._shared = {name: kept for name, kept in self._shared.items() if now < kept[1]}
                if len(self._shared) >= MAX_USERS:
                    raise PoolFull(f"the pool has {MAX_USERS} users already")
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

    async def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not woken.done():
                woken.set_result(None)

        def wake() -> None:
            # The loop of a caller who is gone may be closed; then there is nobody to wake.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish)

        try:
            sleep_s = self.inner.sleep_until_woken(user, ticket, wake, timeout_s)
            if sleep_s > 0:
                await asyncio.wait([woken], timeout=None if sleep_s == FAR else sleep_s)
        finally:
            self.inner.stop_sleeping(user, ticket)

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
