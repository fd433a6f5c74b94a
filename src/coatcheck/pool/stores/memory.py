"""The store in the process itself: a dictionary and a lock. It is lost with the process."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.pool import rules
from coatcheck.pool.commands import Command, Outcome
from coatcheck.pool.errors import PoolFull
from coatcheck.pool.state import FAR, Policy, UserState, new_user

MAX_USERS: Final = 10_000


class MemoryStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`. ``clock``: seconds that never go back.

    ``states`` and ``lock`` are open to the pool's own fast path; whoever holds the lock may use the rules directly.
    """

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        # Waiting callers cannot die without the process, so their tickets need no life.
        self.policy = msgspec.structs.replace(policy, ticket_life_s=FAR)
        self.clock = clock
        self.lock = threading.Lock()
        self.states: dict[str, UserState] = {}
        self._wakers: dict[tuple[str, int], Callable[[], None]] = {}

    def apply(self, user: str, command: Command) -> Outcome:
        with self.lock:
            state = self.states.get(user) or self._new(user)
            outcome = rules.apply(state, self.policy, self.clock(), command)
            if state.tickets:
                self.wake(user, state)
        return outcome

    def wake_all(self) -> None:
        """Wake every waiting caller: the pool closes."""
        with self.lock:
            while self._wakers:
                self._wakers.popitem()[1]()

    def start_anew(self) -> None:
        """After a fork the child must not use its parent's tokens."""
        self.lock = threading.Lock()
        self.states = {}
        self._wakers = {}

    def _new(self, user: str) -> UserState:
        if len(self.states) >= MAX_USERS:
            self._forget_idle()
            if len(self.states) >= MAX_USERS:
                raise PoolFull(f"the pool has {MAX_USERS} users already")
        state = self.states[user] = new_user(time.time_ns() // 1000)
        return state

    def wake(self, user: str, state: UserState) -> None:
        """Wake the callers whose turn it is. Call it with the lock held."""
        for number in rules.turns(state, self.policy, self.clock()):
            waker = self._wakers.pop((user, number), None)
            if waker is not None:
                waker()

    def sleep_until_woken(self, user: str, ticket: int, waker: Callable[[], None]) -> bool:
        """Register who to wake; ``False`` if it is the ticket's turn already (then nobody is woken)."""
        with self.lock:
            state = self.states.get(user)
            if state is None or ticket in rules.turns(state, self.policy, self.clock()):
                return False
            self._wakers[user, ticket] = waker
            return True

    def stop_sleeping(self, user: str, ticket: int) -> None:
        self._wakers.pop((user, ticket), None)

    def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        woken = threading.Lock()
        woken.acquire()
        try:
            if self.sleep_until_woken(user, ticket, woken.release):
                woken.acquire(timeout=min(timeout_s, threading.TIMEOUT_MAX))
        finally:
            self.stop_sleeping(user, ticket)

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        with self.lock:
            now = self.clock()
            chosen = (
                self.states if user is None else {name: self.states[name] for name in [user] if name in self.states}
            )
            return {name: (copy.deepcopy(state), now) for name, state in chosen.items()}

    def forget(self) -> None:
        with self.lock:
            self._forget_idle()

    def _forget_idle(self) -> None:
        now = self.clock()
        for name in [name for name, state in self.states.items() if state.is_idle(now)]:
            del self.states[name]

    def close(self) -> None:
        """Nothing to let go."""


class AsyncMemoryStore:
    """The same store for asyncio; pools of several event loops and threads may share one."""

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner

    async def apply(self, user: str, command: Command) -> Outcome:
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

        if not self.inner.sleep_until_woken(user, ticket, wake):
            return
        try:
            await asyncio.wait([woken], timeout=None if timeout_s == FAR else timeout_s)
        finally:
            self.inner.stop_sleeping(user, ticket)

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        return self.inner.look(user)

    async def forget(self) -> None:
        self.inner.forget()

    async def close(self) -> None:
        self.inner.close()
