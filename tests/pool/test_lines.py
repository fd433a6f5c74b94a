"""Callers of one process wait in one line, of which the store knows one ticket: on every store."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from coatcheck.pool import AsyncTokenPool, PoolFull, StoreUnavailable, TokenPool, flows, lines
from coatcheck.pool.commands import Acquire, Command, Granted, Leave, LoginEnded, MustLogIn, NoToken, Release, Waiting
from coatcheck.pool.lines import Lines, Place, WaitLine
from coatcheck.pool.state import FAR, Policy
from coatcheck.pool.stores.memory import MemoryTokenStore
from pool.conftest import running

KEY = b"0123456789abcdef" * 2
IN_TIME_S = 120.0
CALLERS = 90


@pytest.fixture(scope="module", params=["memory", "sqlite", "redis", "postgresql"])
def kept(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    if request.param == "memory":
        yield {}
        return
    for backend in running(request.param):
        yield {"store": backend.url, "key": KEY}


async def until(condition: Any) -> None:
    async with asyncio.timeout(IN_TIME_S):
        while not await condition():
            await asyncio.sleep(0.005)


def test_a_crowd_waits_without_writing_is_cancelled_without_writing_and_is_served_in_order(
    kept: dict[str, Any],
) -> None:
    async def story() -> None:
        sent: Counter[str] = Counter()
        served: list[int] = []
        async with AsyncTokenPool(lambda user: "t", per_user=1, wait=IN_TIME_S, name="crowd", **kept) as pool:
            apply = pool._store.apply

            def counted(user: str, command: Command) -> Any:
                sent[type(command).__name__] += 1
                return apply(user, command)

            async def call(number: int) -> None:
                async with pool.lease("ann"):
                    served.append(number)

            async def all_wait() -> bool:
                return (await pool.stats())["ann"].waiting == CALLERS

            held = await pool.lease("ann").acquire()
            callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
            await until(all_wait)
            (state, _) = (await pool._store.look("ann"))["ann"]
            assert len(state.tickets) == 1, "the store knows one"
            pool._store.apply = counted  # type: ignore[method-assign]
            began = time.monotonic()
            await asyncio.sleep(0.3)
            for caller in callers[::3]:
                caller.cancel()
            await asyncio.wait(callers[::3])
            spent_s = time.monotonic() - began
            assert sum(sent.values()) <= 2 + 2 * spent_s, f"{sent} in {spent_s} s"
            left = [number for number in range(CALLERS) if number % 3]
            assert (await pool.stats())["ann"].waiting == len(left)
            sent.clear()
            await held.release()
            await asyncio.wait(callers)
            assert served == left, "first come, first served"
            stats = (await pool.stats())["ann"]
            assert (stats.free, stats.leased, stats.waiting, stats.logins_total) == (1, 0, 0, 1)
            assert sum(sent.values()) <= 2 * len(left), "no more than a command and a half for each"

    asyncio.run(story())


def test_processes_are_served_in_turn(kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pools on one store stand for two processes; twenty callers of the one do not starve the one of the other."""
    if not kept:
        return  # nobody else shares it
    monkeypatch.setattr(lines, "TURN_S", 0.0)
    options: dict[str, Any] = {"per_user": 1, "wait": IN_TIME_S, "name": "turns", **kept}

    async def story() -> None:
        served: list[str] = []
        async with (
            AsyncTokenPool(lambda user: "t", **options) as one,
            AsyncTokenPool(lambda user: "t", **options) as two,
        ):

            async def call(pool: AsyncTokenPool, name: str) -> None:
                async with pool.lease("ann"):
                    served.append(name)

            async def waiting(count: int) -> bool:
                return (await two.stats())["ann"].waiting >= count

            held = await one.lease("ann").acquire()
            callers = [asyncio.create_task(call(one, "one")) for _ in range(20)]
            await until(lambda: waiting(1))
            callers.append(asyncio.create_task(call(two, "two")))

            async def both() -> bool:
                return len((await two._store.look("ann"))["ann"][0].tickets) == 2

            await until(both)
            await held.release()
            await asyncio.wait(callers)
        assert served.index("two") <= 2, served
        assert len(served) == 21

    asyncio.run(story())


WAITERS = """
import sys, threading
from coatcheck.pool import TokenPool
pool = TokenPool(lambda user: "t", store=sys.argv[1], key=bytes.fromhex(sys.argv[2]), per_user=1, wait=300, name="dies")
for _ in range(3):
    threading.Thread(target=pool.lease("ann").acquire).start()
"""


def test_a_line_dies_with_its_process(store_url: str) -> None:
    pool = TokenPool(lambda user: "t", store=store_url, key=KEY, per_user=1, wait=IN_TIME_S, name="dies")
    held = pool.lease("ann").acquire()
    command = [sys.executable, "-c", textwrap.dedent(WAITERS), store_url, KEY.hex()]
    process = subprocess.Popen(command)
    try:
        ends_at = time.monotonic() + IN_TIME_S
        while pool.stats()["ann"].waiting < 3:
            assert time.monotonic() < ends_at
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait(60)
    served = threading.Event()

    def call() -> None:
        with pool.lease("ann"):
            served.set()

    waiter = threading.Thread(target=call)
    waiter.start()
    held.release()
    assert served.wait(IN_TIME_S), "the dead are waited for"
    waiter.join(60)
    assert pool.stats()["ann"].waiting == 0
    pool.close()


# -- the line by itself


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Story:
    """A line of callers on a store in memory, moved step by step."""

    def __init__(self, **policy: Any) -> None:
        self.clock = Clock()
        self.store = MemoryTokenStore(Policy(per_user=1, **policy), self.clock)
        self.lines = Lines(self.store, self.store.policy, self.clock, lambda: 0.5, threading.RLock())
        self.slot = self.store.apply("ann", Acquire()).reply
        assert isinstance(self.slot, MustLogIn)

    def join(self, count: int) -> list[Place]:
        places = [Place("ann", ()) for _ in range(count)]
        for place in places:
            self.lines.join(place)
        return places

    def ask(self, place: Place) -> list[Command]:
        command = self.lines.to_ask(place)
        assert command is not None
        assert place.line is not None
        return self.lines.heard(place.line, command, self.store.apply("ann", command).reply)


def test_who_is_too_many_is_told_so() -> None:
    story = Story(max_waiting=2)
    places = story.join(3)  # as long as nobody knows that they have to wait
    with pytest.raises(PoolFull):
        story.join(1)
    story.ask(places[0])
    assert [type(place.reply) for place in places] == [type(None), type(None), PoolFull]
    with pytest.raises(PoolFull):
        story.join(1)


def test_what_comes_to_one_who_left_is_the_nexts() -> None:
    story = Story()
    first, second, third = story.join(3)
    story.ask(first)
    assert isinstance(story.slot, MustLogIn)
    story.store.apply("ann", LoginEnded(story.slot.fence, failed=False))
    story.ask(first)
    assert isinstance(first.reply, MustLogIn)
    slot = first.reply
    assert story.lines.leave(first) == []
    assert second.reply == slot
    left = story.lines.leave(third)
    assert [type(command) for command in left] == [Leave], "the last in line tells the store"
    left += story.lines.leave(second)
    assert left[1:] == [LoginEnded(slot.fence, failed=False)], "nobody is there who wants it"
    for command in left:
        story.store.apply("ann", command)
    assert story.store.look("ann") == {} or story.store.look("ann")["ann"][0].tickets == []


def test_a_store_that_is_away_is_asked_once_for_all() -> None:
    story = Story()
    places = story.join(3)
    assert story.lines.to_ask(places[0]) is not None
    assert story.lines.to_ask(places[0]) is None, "one at a time"
    story.lines.failed("ann", places[0], StoreUnavailable("away"))
    assert [type(place.reply) for place in places] == [StoreUnavailable] * 3
    assert [story.lines.leave(place) for place in places] == [[], [], []]


def test_whoever_is_first_sleeps_no_longer_than_the_store_says() -> None:
    story = Story(login_timeout_s=30.0)
    first, second = story.join(2)
    story.ask(first)
    if story.lines.sleep(first, FAR, lambda: None) == 0:  # a new ticket is asked for once more
        story.ask(first)
    woken: list[str] = []
    assert 0 < story.lines.sleep(first, FAR, lambda: woken.append("first")) <= 30.0
    assert story.lines.sleep(second, FAR, lambda: woken.append("second")) == FAR
    assert story.lines.leave(first) == []
    assert woken == ["second"], "it is the first now"
    assert 0 < story.lines.sleep(second, FAR, lambda: None) <= 30.0


def test_a_turn_ends_after_its_time_and_its_callers() -> None:
    story = Story(lease_s=100.0)
    assert isinstance(story.slot, MustLogIn)
    first, *others = story.join(3)
    story.ask(first)
    release = Release(story.slot.fence)
    passing = story.lines.to_pass_on("ann", release, (), None)
    assert passing is not None
    line, both = passing
    assert not both.second.ahead
    story.lines.heard(line, both, Granted(7, "t", 1.0))
    assert first.turn is not None
    assert first.turn.callers == 2
    for late, ahead in ((0.0, True), (lines.TURN_S, False)):
        turn = first.turn
        story.clock.now += late
        passing = story.lines.to_pass_on("ann", release, (), turn)
        assert passing is not None
        assert passing[1].second.ahead is ahead
        story.lines.heard(line, passing[1], Waiting(line.ticket, 1.0), turn)
    assert others[0].reply is None


def test_nobody_asks_for_others_without_end() -> None:
    """Under a crowd it is always somebody's turn; whoever has asked has work of its own."""

    class Busy:
        def heard(self, *_: Any) -> list[Any]:
            return []

        def to_ask_again(self, *_: Any) -> Acquire:
            return Acquire()

    line: Any = WaitLine("SADMIN", ())
    lines: Any = Busy()
    flow = flows._heard(line, object(), lines, Acquire(), NoToken())
    asked = 0
    with contextlib.suppress(StopIteration):
        next(flow)
        while asked < 1_000:
            asked += 1
            flow.send(NoToken())
    assert asked == flows.ASKS_FOR_OTHERS
