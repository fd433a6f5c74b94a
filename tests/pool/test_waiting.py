"""Nobody sleeps past the moment when a token, a slot or a login becomes possible, though nobody gives anything back."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from coatcheck.pool import AsyncTokenPool, LoginFailed, PoolClosed, PoolFull, TokenPool
from coatcheck.pool.commands import Acquire, Leave, Waiting
from coatcheck.pool.lines import Lines, Place
from coatcheck.pool.state import Policy
from coatcheck.pool.stores.memory import MemoryTokenStore

PATIENCE_S = 120.0
SOON_S = 60.0


class Story:
    """A pool with one slot, whose state changes by itself while somebody waits."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.logins = 0
        self.hanging = threading.Event()
        self.entered = threading.Event()
        self.begin = threading.Event()

    def sign_in(self, user: str) -> str:
        self.logins += 1
        if self.kind == "a login fails" and self.logins == 1:
            self.entered.set()
            assert self.begin.wait(PATIENCE_S)
            raise ConnectionError
        return f"t{self.logins}"

    def sign_out(self, user: str, token: str) -> None:
        assert self.hanging.wait(PATIENCE_S)

    def options(self) -> dict[str, Any]:
        common = {"per_user": 1, "wait": PATIENCE_S, "lease": 1_000, "login_timeout": 1_000}
        if self.kind == "a login fails":
            return {**common, "login_backoff": ("300ms", "300ms")}
        if self.kind == "a slot is free, a login not yet allowed":
            return {**common, "login_rate": "1/1s"}
        return {**common, "logout": self.sign_out, "logout_timeout": "300ms"}


KINDS = ["a login fails", "a slot is free, a login not yet allowed", "a logout hangs"]


def waiting(pool: TokenPool) -> None:
    until = time.monotonic() + SOON_S
    while pool.stats()["ann"].waiting == 0:
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind: str) -> None:
    story = Story(kind)
    pool = TokenPool(story.sign_in, on_event=lambda event: None, **story.options())
    waited: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        with pool.lease("ann"):
            waited.append(time.monotonic() - began)

    def fail() -> None:
        with pytest.raises(LoginFailed):
            pool.lease("ann").acquire()

    first = threading.Thread(target=fail if kind == "a login fails" else lambda: None)
    first.start()
    held = None
    if kind == "a login fails":
        assert story.entered.wait(SOON_S)
    else:
        held = pool.lease("ann").acquire()
    waiter = threading.Thread(target=wait)
    waiter.start()
    waiting(pool)
    story.begin.set()
    if held is not None:
        held.drop(sign_out=True)
        held.release()
    waiter.join(PATIENCE_S)
    first.join(PATIENCE_S)
    story.hanging.set()
    assert waited, "nobody woke it"
    assert waited[0] < SOON_S, "it slept to the end of its own patience"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_asyncio(kind: str) -> None:
    story = Story(kind)

    async def main() -> float:
        pool = AsyncTokenPool(story.sign_in, on_event=lambda event: None, **story.options())
        held = await pool.lease("ann").acquire()
        began = time.monotonic()
        waiter = asyncio.create_task(pool.lease("ann").acquire())
        async with asyncio.timeout(PATIENCE_S):
            while (await pool.stats())["ann"].waiting == 0:
                await asyncio.sleep(0.002)
            held.drop(sign_out=True)
            await held.release()
            await waiter
        story.hanging.set()
        return time.monotonic() - began

    assert asyncio.run(main()) < SOON_S


def test_who_begins_to_wait_while_the_pool_closes_is_not_forgotten() -> None:
    """The window between being told to wait and falling asleep."""
    store = MemoryTokenStore(Policy(per_user=1))
    lines = Lines(store, store.policy, time.monotonic, lambda: 0.5, threading.RLock())
    store.apply("ann", Acquire())
    place = Place("ann", ())
    lines.join(place)
    command = lines.to_ask(place)
    assert command == Acquire()
    reply = store.apply("ann", command).reply
    assert type(reply) is Waiting
    assert place.line is not None
    assert lines.heard(place.line, command, reply) == []
    lines.close()
    assert lines.sleep(place, time.monotonic() + PATIENCE_S, lambda: None) == 0
    assert type(place.reply) is PoolClosed
    assert lines.leave(place) == [Leave(reply.ticket)], "the last to leave tells the store"


def test_closing_wakes_everybody_who_waits_without_end() -> None:
    pool = TokenPool(lambda user: "t", per_user=1, wait=PATIENCE_S)
    held = pool.lease("ann").acquire()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            pool.lease("ann").acquire()
        except PoolClosed as error:
            ended.append(error)

    waiters = [threading.Thread(target=wait) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    pool.close(timeout=0)
    for waiter in waiters:
        waiter.join(SOON_S)
    assert len(ended) == 5
    assert held.fencing


def test_expired_tokens_make_room_for_new_users() -> None:
    now = [1_000.0]
    pool = TokenPool(lambda user: f"token of {user}", ttl="60s", lease="60s", clock=lambda: now[0], max_users=3)
    for user in ("ann", "bob", "cleo"):
        with pool.lease(user):
            pass
    with pytest.raises(PoolFull):
        pool.lease("dan").acquire()
    now[0] += 100
    with pool.lease("dan") as held:
        assert held.token == "token of dan"
    assert set(pool.stats()) == {"dan"}

    async def awaited() -> None:
        few: Any = {"ttl": "60s", "lease": "60s", "clock": lambda: now[0], "max_users": 3}
        async with AsyncTokenPool(lambda user: "t", **few) as other:
            for user in ("ann", "bob", "cleo"):
                async with other.lease(user):
                    pass
            now[0] += 100
            async with other.lease("dan"):
                assert set(await other.stats()) == {"dan"}

    asyncio.run(awaited())


def test_looking_copies() -> None:
    pool = TokenPool(lambda user: "t")
    with pool.lease("ann"):
        assert pool.memory is not None
        seen, _ = pool.memory.look()["ann"]
        assert seen == pool.memory.states["ann"]
        seen.leases.clear()
        assert pool.stats()["ann"].leased == 1
