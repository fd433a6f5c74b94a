"""Flows on asyncio: exclusive ones in turn, failures to whoever asked, cancelled ones closed from the inside. The same
for flows that threads begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.drivers.begun import Begun
from coatcheck.drivers.visit import visitor_address
from coatcheck.errors import SessionUnavailable
from coatcheck.replication.effects import Exclusive, Flow, Get, Gotten, Pause
from coatcheck.stores.memory import MemoryStore

KEY, OTHER = b"k" * 16, b"o" * 16


Run = Callable[[AsyncioDriver, Any], Awaitable[Any]]
VISIT: Any = SimpleNamespace(client="192.0.2.1", lost=None)


class Awaited(Begun):
    """One that is waited for here."""

    def __init__(self, driver: AsyncioDriver) -> None:
        super().__init__(driver, VISIT)
        self.ended = asyncio.Event()

    def wake(self) -> None:
        super().wake()
        self.ended.set()


async def run_begun(driver: AsyncioDriver, work: Any) -> Any:
    call = Awaited(driver)
    call.begin(work)
    try:
        await call.ended.wait()
    except asyncio.CancelledError:
        call.cancel()
        await call.ended.wait()
        raise
    return call.outcome()


@pytest.fixture(params=[AsyncioDriver.run, run_begun], ids=["run", "begun"])
def run(request: pytest.FixtureRequest) -> Run:
    way: Run = request.param
    return way


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
    taken = driver.turns.take(key)
    if taken:
        driver.turns.give(key)
    return taken


def test_one_at_a_time_and_in_order(run: Run) -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        names = [f"{number}" for number in range(5)]
        await asyncio.gather(*(run(driver, exclusively(KEY, step(log, name))) for name in names))
        assert free(driver, KEY)
        return log

    assert asyncio.run(story()) == [f"{number} {what}" for number in range(5) for what in ("begins", "ends")]


def test_different_keys_do_not_wait_for_each_other(run: Run) -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        await asyncio.gather(
            run(driver, exclusively(KEY, step(log, "slow", 0.05))), run(driver, exclusively(OTHER, step(log, "quick")))
        )
        return log

    assert asyncio.run(story()) == ["slow begins", "quick begins", "quick ends", "slow ends"]


def test_a_failure_reaches_the_flow_that_asked_and_gives_the_turn_back(run: Run) -> None:
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
        answer = await run(driver, asks())
        assert free(driver, KEY)
        with pytest.raises(LookupError):
            await run(driver, exclusively(KEY, fails()))
        assert free(driver, KEY)
        return answer

    assert asyncio.run(story()) == "caught inside"


def test_a_cancelled_flow_is_closed_from_the_inside_and_the_next_one_goes_on(run: Run) -> None:
    def outer(log: list[str]) -> Flow[None]:
        try:
            yield Exclusive(KEY, step(log, "inner", 10))
        finally:
            log.append("outer ends")

    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        cancelled = asyncio.ensure_future(run(driver, outer(log)))
        following = asyncio.ensure_future(run(driver, exclusively(KEY, step(log, "next"))))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await following == "next"
        assert free(driver, KEY)
        return log

    assert asyncio.run(story()) == ["inner begins", "inner ends", "outer ends", "next begins", "next ends"]


def test_whoever_is_cancelled_while_waiting_takes_no_turn(run: Run) -> None:
    async def story() -> list[str]:
        driver, log = AsyncioDriver({}), []
        first = asyncio.ensure_future(run(driver, exclusively(KEY, step(log, "first", 0.03))))
        waits = asyncio.ensure_future(run(driver, exclusively(KEY, step(log, "never"))))
        third = asyncio.ensure_future(run(driver, exclusively(KEY, step(log, "third"))))
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
        turns = driver.turns
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


def asks_three_times() -> Flow[list[str]]:
    asked = []
    for _ in range(3):
        gotten: Gotten = yield Exclusive(KEY, gets())
        asked += [visitor_address(), str(gotten.replies["memory"])]
    return asked


def gets() -> Flow[Gotten]:
    return (yield Get(KEY, ("memory",)))


def test_what_stores_answer_at_once_needs_neither_task_nor_event_loop() -> None:
    """In the name of the client that asks."""

    async def story() -> None:
        store = MemoryStore("memory", time.monotonic)
        await store.open()
        driver = AsyncioDriver({"memory": store})
        tasks = asyncio.all_tasks()
        call = Begun(driver, VISIT)
        call.begin(Exclusive(OTHER, asks_three_times()))
        assert call.is_over
        assert call.outcome() == ["192.0.2.1", "None"] * 3
        assert asyncio.all_tasks() == tasks
        assert free(driver, KEY)
        assert free(driver, OTHER)
        assert visitor_address() == ""
        await store.aclose()

    asyncio.run(story())


def test_an_interrupt_is_for_the_thread_and_not_for_whose_flow_it_meets() -> None:
    def interrupted() -> Flow[None]:
        yield Exclusive(KEY, gets())
        raise KeyboardInterrupt

    async def story() -> None:
        store = MemoryStore("memory", time.monotonic)
        await store.open()
        driver = AsyncioDriver({"memory": store})
        call = Begun(driver, VISIT)
        with pytest.raises(KeyboardInterrupt):
            call.begin(Exclusive(OTHER, interrupted()))
        with pytest.raises(SessionUnavailable, match="stopping"):
            call.outcome()
        assert free(driver, OTHER)
        await store.aclose()

    asyncio.run(story())
