"""Flows on asyncio: exclusive ones in turn, failures to whoever asked, cancelled ones closed from the inside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.replication.effects import Exclusive, Flow, Pause

KEY, OTHER = b"k" * 16, b"o" * 16


def step(log: list[str], name: str, seconds: float = 0.0) -> Flow[str]:
    log.append(f"{name} begins")
    try:
        yield Pause(seconds)
    finally:
        log.append(f"{name} ends")
    return name


def exclusively(key: bytes, flow: Flow[Any]) -> Flow[Any]:
    return (yield Exclusive(key, flow))


def free(driver: AsyncioDriver, key: bytes) -> bool:
    taken = driver._turns.take(key)
    if taken:
        driver._turns.give(key)
    return taken


def test_one_at_a_time_and_in_order() -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        names = [f"{number}" for number in range(5)]
        await asyncio.gather(*(driver.run(exclusively(KEY, step(log, name))) for name in names))
        assert free(driver, KEY)
        return log

    assert asyncio.run(story()) == [f"{number} {what}" for number in range(5) for what in ("begins", "ends")]


def test_different_keys_do_not_wait_for_each_other() -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        await asyncio.gather(
            driver.run(exclusively(KEY, step(log, "slow", 0.05))), driver.run(exclusively(OTHER, step(log, "quick")))
        )
        return log

    assert asyncio.run(story()) == ["slow begins", "quick begins", "quick ends", "slow ends"]


def test_a_failure_reaches_the_flow_that_asked_and_gives_the_turn_back() -> None:
    def fails() -> Flow[None]:
        yield Pause(0)
        raise LookupError("inside")

    def asks() -> Flow[str]:
        try:
            yield Exclusive(KEY, fails())
        except LookupError as error:
            return f"caught {error}"
        return "nothing"

    async def story() -> str:
        driver = AsyncioDriver({})
        answer = await driver.run(asks())
        assert free(driver, KEY)
        with pytest.raises(LookupError):
            await driver.run(exclusively(KEY, fails()))
        assert free(driver, KEY)
        return answer

    assert asyncio.run(story()) == "caught inside"


def test_a_cancelled_flow_is_closed_from_the_inside_and_the_next_one_goes_on() -> None:
    def outer(log: list[str]) -> Flow[None]:
        try:
            yield Exclusive(KEY, step(log, "inner", 10))
        finally:
            log.append("outer ends")

    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        cancelled = asyncio.create_task(driver.run(outer(log)))
        following = asyncio.create_task(driver.run(exclusively(KEY, step(log, "next"))))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await following == "next"
        assert free(driver, KEY)
        return log

    assert asyncio.run(story()) == ["inner begins", "inner ends", "outer ends", "next begins", "next ends"]


def test_whoever_is_cancelled_while_waiting_takes_no_turn() -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        first = asyncio.create_task(driver.run(exclusively(KEY, step(log, "first", 0.03))))
        waits = asyncio.create_task(driver.run(exclusively(KEY, step(log, "never"))))
        third = asyncio.create_task(driver.run(exclusively(KEY, step(log, "third"))))
        await asyncio.sleep(0.01)
        waits.cancel()
        await asyncio.gather(first, third)
        assert waits.cancelled()
        assert free(driver, KEY)
        return log

    assert asyncio.run(story()) == ["first begins", "first ends", "third begins", "third ends"]


def test_a_turn_that_comes_in_the_moment_of_cancellation_is_passed_on() -> None:
    async def story() -> None:
        driver = AsyncioDriver({})
        turns = driver._turns
        assert turns.take(KEY)
        first, second = asyncio.create_task(turns.wait(KEY)), asyncio.create_task(turns.wait(KEY))
        await asyncio.sleep(0)
        turns.give(KEY)  # first is due, but has not run yet
        first.cancel()
        await asyncio.wait([first], timeout=60)
        assert first.cancelled()
        await asyncio.wait_for(second, 60)
        turns.give(KEY)
        assert free(driver, KEY)

    asyncio.run(story())
