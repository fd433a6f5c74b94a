"""The pool for asyncio: the same promises, and cancellation at every point."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from coatcheck.pool import (
    NULL_TOKEN,
    AsyncTokenPool,
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    PoolClosed,
    PoolEvent,
    PoolFull,
    PoolTimeout,
)
from pool.conftest import running


class Upstream:
    def __init__(self, slow_s: float = 0.0) -> None:
        self.slow_s = slow_s
        self.logins = 0
        self.open: set[str] = set()
        self.most = 0
        self.in_use: set[str] = set()
        self.broken = 0.0
        self.dice = random.Random(1)

    async def sign_in(self, user: str) -> str:
        await asyncio.sleep(self.slow_s)
        if self.dice.random() < self.broken:
            raise ConnectionError(user)
        self.logins += 1
        token = f"{user}-{self.logins}"
        self.open.add(token)
        self.most = max(self.most, len(self.open))
        return token

    async def sign_out(self, user: str, token: str) -> None:
        await asyncio.sleep(self.slow_s / 2)
        self.open.discard(token)

    async def call(self, token: str, takes_s: float) -> None:
        assert token not in self.in_use, "one token in two hands"
        assert token in self.open
        self.in_use.add(token)
        try:
            await asyncio.sleep(takes_s)
        finally:
            self.in_use.discard(token)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(180):
            await story()

    asyncio.run(bounded())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.002)


async def quiet(pool: AsyncTokenPool, user: str = "ann") -> bool:
    stats = (await pool.stats())[user]
    return (stats.leased, stats.logins, stats.waiting, stats.closing) == (0, 0, 0, 0)


def test_lease_renew_and_the_same_names() -> None:
    async def story() -> None:
        upstream = Upstream()
        async with AsyncTokenPool(upstream.sign_in, logout=upstream.sign_out, per_user=2) as pool:
            async with pool.lease("ann") as held:
                held.renew("refreshed")
                upstream.open.add("refreshed")
                await held.extend()
            async with pool.lease("ann") as held:
                assert held.token == "refreshed"
                again = await pool.resume("ann", held.fencing)
                assert again.token == "refreshed"
                held.drop()
            assert await pool.check_out("ann") is NULL_TOKEN
            await pool.check_in("ann", NULL_TOKEN, "mine")
            token = await pool.check_out("ann")
            assert token.token == "mine"
            await pool.check_in("ann", token, "mine too")
            with pytest.raises(LeaseLost):
                await pool.check_in("ann", token, "replayed")
            assert [row.state for row in await pool.list()] == ["free"]
            assert await pool.remove_token("ann") == 1
            await until(lambda: quiet(pool))
            await pool.check_in("ann", NULL_TOKEN, "mine")
            assert await pool.remove("ann", await pool.check_out("ann"))
            assert await pool.clean_up() == 0

    run(story)


def test_a_stampede_costs_at_most_per_user_logins_and_waiting_is_fair() -> None:
    async def story() -> None:
        upstream, order = Upstream(slow_s=0.02), []
        async with AsyncTokenPool(upstream.sign_in, per_user=2) as pool:

            async def call(number: int) -> None:
                async with pool.lease("ann") as held:
                    order.append(number)
                    await upstream.call(held.token, 0.001)

            await asyncio.gather(*(call(number) for number in range(50)))
        assert upstream.logins == 2
        assert order == list(range(50))

    run(story)


def test_errors_as_with_threads() -> None:
    async def story() -> None:
        upstream = Upstream()
        upstream.broken = 1.0
        events: list[PoolEvent] = []
        pool = AsyncTokenPool(upstream.sign_in, per_user=1, max_waiting=1, on_event=events.append)
        with pytest.raises(LoginFailed):
            await pool.lease("ann").acquire()
        with pytest.raises(LoginRateLimited):
            await pool.lease("ann", wait=0.1).acquire()
        assert len(events) == 1
        upstream.broken = 0.0
        async with pool.lease("bob"):
            with pytest.raises(PoolTimeout):
                await pool.lease("bob", wait="20ms").acquire()
            waiter = asyncio.create_task(pool.lease("bob").acquire())
            await until(lambda: _waiting(pool, "bob", 1))
            with pytest.raises(PoolFull):
                await pool.lease("bob").acquire()
            waiter.cancel()
            await asyncio.wait([waiter])
            assert await _waiting(pool, "bob", 0)
            waiter = asyncio.create_task(pool.lease("bob").acquire())
            await until(lambda: _waiting(pool, "bob", 1))
            closing = asyncio.create_task(pool.close())
            with pytest.raises(PoolClosed):
                await waiter
        await closing

    run(story)


async def _waiting(pool: AsyncTokenPool, user: str, count: int) -> bool:
    return (await pool.stats())[user].waiting == count


def test_plain_functions_run_in_threads() -> None:
    async def story() -> None:
        async with AsyncTokenPool(
            lambda user: f"token of {user}", on_error="probe", probe=lambda user, token: 1
        ) as pool:
            with pytest.raises(ZeroDivisionError):
                async with pool.lease("ann"):
                    1 / 0  # noqa: B018
            async with pool.lease("ann") as held:
                assert (held.token, held.uses) == ("token of ann", 2)

    run(story)


def test_a_login_whose_caller_was_cancelled_is_for_the_next_one() -> None:
    async def story() -> None:
        upstream = Upstream(slow_s=0.3)
        async with AsyncTokenPool(upstream.sign_in, per_user=1) as pool:
            caller = asyncio.create_task(pool.lease("ann").acquire())
            while "ann" not in await pool.stats():
                await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert (await pool.stats())["ann"].logins == 1, "the upstream may have opened the session already"
            async with pool.lease("ann") as held:
                assert held.token == "ann-1"
            assert upstream.logins == 1

    run(story)


def test_a_login_that_hangs_ends_at_its_time_limit() -> None:
    async def story() -> None:
        pool = AsyncTokenPool(Upstream(slow_s=30).sign_in, login_timeout="50ms", per_user=1)
        with pytest.raises(LoginFailed, match="TimeoutError"):
            await pool.lease("ann").acquire()
        assert await quiet(pool)
        await pool.close()

    run(story)


def test_keepalive() -> None:
    async def story() -> None:
        touched: list[str] = []

        async def touch(user: str, token: str) -> str:
            touched.append(token)
            return token + "+"

        async with AsyncTokenPool(Upstream().sign_in, keepalive=touch, keepalive_every="30ms") as pool:
            async with pool.lease("ann"):
                pass
            async with asyncio.timeout(60):
                while len(touched) < 2:
                    await asyncio.sleep(0.005)
            assert touched[:2] == ["ann-1", "ann-1+"]

    run(story)


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis", "postgresql"])
def kept(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of a pool in each store."""
    if request.param == "memory":
        yield {}
        return
    for backend in running(request.param):
        yield {"store": backend.url, "key": b"0123456789abcdef" * 2}


@pytest.mark.parametrize("seed", range(4))
def test_cancelled_anywhere_nothing_leaks_and_nobody_starves(seed: int, kept: dict[str, Any]) -> None:
    shared = {**kept, "name": f"seed {seed}"}

    async def story() -> None:
        dice = random.Random(seed)
        upstream = Upstream(slow_s=0.004)
        upstream.broken, upstream.dice = 0.1, dice
        pool = AsyncTokenPool(
            upstream.sign_in,
            logout=upstream.sign_out,
            per_user=3,
            max_uses=5,
            login_rate=None,
            login_backoff=("1ms", "5ms"),
            wait="20s",
            on_event=lambda event: None,
            **shared,
        )
        served = 0

        async def call() -> None:
            nonlocal served
            for _ in range(6):
                try:
                    async with pool.lease("ann") as held:
                        await upstream.call(held.token, dice.random() * 0.003)
                        if dice.random() < 0.1:
                            raise ZeroDivisionError
                        if dice.random() < 0.1:
                            held.drop(sign_out=True)
                        served += 1
                except (LoginFailed, ZeroDivisionError):
                    continue

        tasks = [asyncio.create_task(call()) for _ in range(30)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(dice.random() * 0.004)
            victim = dice.choice(tasks[1:])  # one is left alone: else a slow store would serve nobody
            if dice.random() < 0.3:
                victim.cancel()
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        await until(lambda: quiet(pool))
        assert served > 0
        assert upstream.most <= 3, "never more sessions than per_user"
        stats = (await pool.stats())["ann"]
        assert len(upstream.open) == stats.free, "no session was forgotten"
        upstream.broken = 0.0
        async with pool.lease("ann"), pool.lease("ann"), pool.lease("ann", wait="5s"):
            assert (await pool.stats())["ann"].leased == 3, "every slot is usable"
        await pool.close()
        if not kept:
            assert upstream.open == set()

    run(story)
