"""A cancellation is never lost, comes at any step, and leaves nothing behind: on every store."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coatcheck.pool import AsyncTokenPool, LoginFailed, PoolEvent, StoreUnavailable
from coatcheck.pool.background import untorn
from pool.conftest import running

STEPS = 40


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis", "postgresql"])
def kept(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    if request.param == "memory":
        yield {}
        return
    for backend in running(request.param):
        yield {"store": backend.url, "key": b"0123456789abcdef" * 2}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_cancelled_after_any_number_of_steps(kept: dict[str, Any], warm: bool) -> None:
    """Steps of the loop, and between them the time that a store needs to answer."""

    async def sign_in(user: str) -> str:
        await asyncio.sleep(0)
        return "t"

    async def story() -> None:
        async with AsyncTokenPool(sign_in, per_user=1, login_rate=None, wait=60, name=f"steps {warm}", **kept) as pool:
            if warm:
                async with pool.lease("ann"):
                    pass
            outcomes = set()
            for steps in range(STEPS):
                caller = asyncio.create_task(pool.lease("ann").acquire())
                for step in range(steps):
                    await asyncio.sleep(0.0005 if step % 8 == 7 else 0)
                asked = caller.cancel()
                try:
                    held = await caller
                except asyncio.CancelledError:
                    outcomes.add("cancelled")
                else:
                    assert not asked, "a cancellation was swallowed"
                    outcomes.add("held")
                    await held.release()
            assert "cancelled" in outcomes
            async with asyncio.timeout(60):
                while True:
                    stats = (await pool.stats()).get("ann")
                    if stats is None or (stats.leased, stats.logins, stats.waiting) == (0, 0, 0):
                        break
                    await asyncio.sleep(0.005)
            async with pool.lease("ann", wait="30s"):
                assert (await pool.stats())["ann"].leased == 1

    asyncio.run(story())


def test_waiting_callers_that_are_cancelled_leave_the_queue(kept: dict[str, Any]) -> None:
    async def story() -> None:
        async with AsyncTokenPool(lambda user: "t", per_user=1, wait=60, name="queue", **kept) as pool:
            async with pool.lease("ann"):
                callers = [asyncio.create_task(pool.lease("ann").acquire()) for _ in range(6)]
                async with asyncio.timeout(60):
                    while (await pool.stats())["ann"].waiting < 6:
                        await asyncio.sleep(0.005)
                for caller in callers:
                    caller.cancel()
                await asyncio.wait(callers)
                assert all(caller.cancelled() for caller in callers)
                assert (await pool.stats())["ann"].waiting == 0
            async with pool.lease("ann", wait="30s"):
                pass

    asyncio.run(story())


def test_a_cancellation_together_with_the_result_is_noted() -> None:
    async def work(steps: int) -> int:
        for _ in range(steps):
            await asyncio.sleep(0)
        return 7

    async def story() -> None:
        for before in range(8):
            noted: list[asyncio.CancelledError] = []
            step = asyncio.create_task(untorn(work(3), noted))
            await asyncio.sleep(0)
            for _ in range(before):
                await asyncio.sleep(0)
            if not step.cancel():
                assert step.result() == 7
                continue
            assert await step == 7, "it is not torn"
            assert len(noted) == 1, f"swallowed after {before} steps"

    asyncio.run(story())


def test_a_cancelled_caller_is_told_so_whatever_else_went_wrong() -> None:
    async def story() -> None:
        pool = AsyncTokenPool(lambda user: "t", store="redis://127.0.0.1:1/0", key=b"0123456789abcdef" * 2)
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def broken(user: str, command: object) -> None:
            entered.set()
            await go_on.wait()
            raise StoreUnavailable("gone")

        pool._store.apply = broken  # type: ignore[method-assign, assignment]
        caller = asyncio.create_task(pool.lease("ann").acquire())
        await entered.wait()
        caller.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(story())


def test_what_a_plain_login_brings_too_late_is_logged_out() -> None:
    opened: list[str] = []
    closed: list[str] = []
    go_on = threading.Event()

    def sign_in(user: str) -> str:
        assert go_on.wait(60)
        opened.append("t")
        return "t"

    async def sign_out(user: str, token: str) -> None:
        closed.append(token)

    async def story() -> None:
        events: list[PoolEvent] = []
        pool = AsyncTokenPool(sign_in, logout=sign_out, login_timeout="50ms", on_event=events.append)
        with pytest.raises(LoginFailed):
            await pool.lease("ann").acquire()
        go_on.set()
        until = time.monotonic() + 60
        while closed != ["t"]:
            assert time.monotonic() < until, "the session stays open"
            await asyncio.sleep(0.002)
        await pool.close()
        assert opened == closed

    asyncio.run(story())
