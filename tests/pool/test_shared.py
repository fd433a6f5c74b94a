"""Shared tokens in one process: for threads and for asyncio, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import (
    AsyncTokenPool,
    LoginFailed,
    LoginRateLimited,
    LoginRefused,
    PoolClosed,
    PoolEvent,
    PoolTimeout,
    SharedToken,
    SignedIn,
    StoreUnavailable,
    TokenPool,
)
from coatcheck.pool.shared.flights import PAUSE_LOOK_S, Flights
from coatcheck.pool.shared.flows import Join, Sleep
from coatcheck.pool.shared.rules import Begun, Current
from coatcheck.pool.shared.seen import MAX_LINES, SharedLine, SharedLines

LIMIT_S = 60.0


class Clock:
    """The test's own time."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """Logins that count, and wait or fail when they are told to."""

    def __init__(self, life_s: float | None = 100.0) -> None:
        self.life_s = life_s
        self.logins = 0
        self.under_way = 0
        self.failing: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.given: list[str | None] = []
        self.logged_out: list[str] = []

    def login(self, user: str, password: str | None, refresh_token: str | None = None) -> SignedIn:
        self.under_way += 1
        try:
            assert self.open.wait(LIMIT_S)
            self.given.append(refresh_token)
            if self.failing is not None:
                raise self.failing
            self.logins += 1
            number = f"{self.logins} of {user} {password}"
            return SignedIn(f"token {number}", self.life_s, {"url": f"https://{self.logins}"}, f"refresh {number}")
        finally:
            self.under_way -= 1

    def logout(self, user: str, token: str) -> None:
        self.logged_out.append(token)


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


class Threads:
    """Every call by a thread of its own, where there are many."""

    def __init__(self, upstream: Upstream, clock: Clock, **options: Any) -> None:
        self.pool = TokenPool(upstream.login, logout=upstream.logout, clock=clock, **options)

    def get(self, user: str = "svc", password: str | None = None, wait: Any = None) -> SharedToken:
        return self.pool.shared(user, password, wait=wait).get()

    def gets(self, count: int) -> list[SharedToken]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.get(), range(count)))

    def invalidate(self, token: str) -> bool:
        return self.pool.shared("svc").invalidate(token)

    def invalidates(self, token: str, count: int) -> list[bool]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.invalidate(token), range(count)))

    def call(self, name: str, *arguments: Any) -> Any:
        return getattr(self.pool, name)(*arguments)

    def close(self) -> None:
        self.pool.close()


class Tasks:
    """The same on an event loop, in a thread of its own."""

    def __init__(self, upstream: Upstream, clock: Clock, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.pool = AsyncTokenPool(upstream.login, logout=upstream.logout, clock=clock, **options)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_S)

    def get(self, user: str = "svc", password: str | None = None, wait: Any = None) -> SharedToken:
        found: SharedToken = self.run(self.pool.shared(user, password, wait=wait).get())
        return found

    def gets(self, count: int) -> list[SharedToken]:
        async def all_of() -> list[SharedToken]:
            return await asyncio.gather(*[self.pool.shared("svc").get() for _ in range(count)])

        found: list[SharedToken] = self.run(all_of())
        return found

    def invalidate(self, token: str) -> bool:
        return bool(self.run(self.pool.shared("svc").invalidate(token)))

    def invalidates(self, token: str, count: int) -> list[bool]:
        async def all_of() -> list[bool]:
            return await asyncio.gather(*[self.pool.shared("svc").invalidate(token) for _ in range(count)])

        found: list[bool] = self.run(all_of())
        return found

    def call(self, name: str, *arguments: Any) -> Any:
        return self.run(getattr(self.pool, name)(*arguments))

    def close(self) -> None:
        self.run(self.pool.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def world(kind: Any, upstream: Upstream, clock: Clock) -> Any:
    made = kind(upstream, clock, refresh_before=10, wait="60s", on_event=lambda event: None)
    yield made
    made.close()


def test_many_callers_and_one_login(world: Any, upstream: Upstream) -> None:
    upstream.open.clear()
    opening = threading.Timer(0.1, upstream.open.set)
    opening.start()
    assert {each.token for each in world.gets(50)} == {"token 1 of svc None"}
    opening.join()
    assert upstream.logins == 1
    assert world.get().payload == {"url": "https://1"}
    assert "token 1" not in repr(world.get())


def test_the_old_one_is_served_while_the_new_one_comes(kind: Any, upstream: Upstream, clock: Clock) -> None:
    world = kind(upstream, clock, refresh_before=10, wait="5s", on_event=lambda event: None)
    first = world.get()
    clock.now += 89.9
    assert world.get() is first
    assert upstream.under_way == 0
    upstream.open.clear()
    clock.now += 0.2
    try:
        assert {each.token for each in world.gets(20)} == {first.token}, "nobody waits"
        eventually(lambda: upstream.under_way == 1)
        assert {each.token for each in world.gets(20)} == {first.token}
        assert upstream.under_way == 1, "and nobody else logs in"
    finally:
        upstream.open.set()
    eventually(lambda: world.get().token == "token 2 of svc None")
    assert upstream.logins == 2
    assert upstream.logged_out == [], "calls may still use the old one"
    world.close()


def test_who_has_nothing_waits_for_the_login_that_is_under_way(world: Any, upstream: Upstream, clock: Clock) -> None:
    world.get()
    clock.now += 95
    upstream.open.clear()
    world.get()
    eventually(lambda: upstream.under_way == 1)
    clock.now += 10
    opening = threading.Timer(0.1, upstream.open.set)
    opening.start()
    assert {each.token for each in world.gets(20)} == {"token 2 of svc None"}, "the old one has ended"
    opening.join()
    assert upstream.logins == 2


def test_a_stampede_of_refusals_costs_one_login(world: Any, upstream: Upstream) -> None:
    first = world.get()
    assert set(world.invalidates(first.token, 30)) == {True}
    assert {each.token for each in world.gets(30)} == {"token 2 of svc None"}
    assert set(world.invalidates(first.token, 30)) == {True}, "there is a better one"
    assert {each.token for each in world.gets(30)} == {"token 2 of svc None"}
    assert upstream.logins == 2


def test_a_token_that_is_refused_at_once_is_not_replaced_at_once(world: Any, upstream: Upstream, clock: Clock) -> None:
    logins = 0
    for _ in range(300):  # 30 seconds of calls to a page that is forbidden, whatever the token
        world.invalidate(world.get().token)
        clock.now += 0.1
        logins = upstream.logins
    assert logins <= 7, "after 1, 2, 4, 8, 16 ... seconds"
    assert upstream.logins >= 4, "and it is tried again"


def test_a_failing_login_costs_nobody_the_old_token(kind: Any, upstream: Upstream, clock: Clock) -> None:
    events: list[PoolEvent] = []
    world = kind(
        upstream, clock, refresh_before=10, wait="0s", login_backoff=("4s", "60s"), on_event=lambda e: events.append(e)
    )
    cold = world.pool.shared("svc", wait="30s")
    first = world.run(cold.get()) if kind is Tasks else cold.get()
    upstream.failing = ConnectionError("the upstream is away")
    clock.now += 90
    assert world.get() is first
    eventually(lambda: len(events) == 1)
    for _ in range(3):
        assert world.get().token == first.token
    time.sleep(0.05)
    assert len(events) == 1, "the next login waits for its pause"
    clock.now += 4.1
    assert world.get().token == first.token
    eventually(lambda: len(events) == 2)
    clock.now += 5.9
    with pytest.raises((LoginRateLimited, PoolTimeout)):
        world.get()
    with pytest.raises(LoginRateLimited):
        world.get(wait="1s")
    upstream.failing = None
    clock.now += 8.1
    assert world.get(wait="30s").token == "token 2 of svc None"
    assert "away" not in str(events)
    world.close()


def test_a_login_refused_for_good_is_not_tried_again(world: Any, upstream: Upstream, clock: Clock) -> None:
    upstream.failing = LoginRefused("svc")
    with pytest.raises(LoginRefused):
        world.get()
    given = len(upstream.given)
    for _ in range(3):
        with pytest.raises(LoginRefused):
            world.get()
        clock.now += 100
    assert len(upstream.given) == given
    upstream.failing = None
    assert world.call("reset", "svc") == 0
    assert world.get().token == "token 1 of svc None"


def test_another_password_is_another_token(world: Any, upstream: Upstream) -> None:
    assert world.get("ada", "right").token == "token 1 of ada right"
    assert world.get("ada", "WRONG").token == "token 2 of ada WRONG"
    assert world.get("ada").token == "token 3 of ada None"
    assert world.get("ada", "right").token == "token 1 of ada right"


def test_a_refresh_token_is_handed_to_the_next_login(world: Any, upstream: Upstream, clock: Clock) -> None:
    world.get()
    clock.now += 101
    world.get()
    world.invalidate(world.get().token)
    world.get()
    assert upstream.given == [None, "refresh 1 of svc None", "refresh 2 of svc None"]


def test_a_caller_waits_no_longer_than_he_wants(world: Any, upstream: Upstream) -> None:
    upstream.open.clear()
    with pytest.raises(PoolTimeout):
        world.get(wait="50ms")
    upstream.open.set()
    assert world.get().token == "token 1 of svc None", "the login went on"
    assert upstream.logins == 1


def test_a_closed_pool_gives_nothing_and_logs_its_own_out(kind: Any, upstream: Upstream, clock: Clock) -> None:
    world = kind(upstream, clock)
    token = world.get().token
    world.close()
    eventually(lambda: upstream.logged_out == [token])
    shared = world.pool.shared("svc")
    with pytest.raises(PoolClosed):
        asyncio.run(shared.get()) if kind is Tasks else shared.get()


def test_operators_see_and_drop_shared_tokens(world: Any, upstream: Upstream) -> None:
    first = world.get()
    (row,) = world.call("list", "svc")
    assert (row.user, row.state, row.token_id) == ("svc", "shared", first.number)
    assert row.expires_in_s == pytest.approx(100.0)
    assert first.token not in repr(row)
    assert [each.user for each in world.call("list")] == ["svc"]
    assert world.call("remove_token", "svc", row.token_id) == 1
    eventually(lambda: upstream.logged_out == [first.token])
    assert world.get().token == "token 2 of svc None"
    assert world.call("remove_token", "svc") == 1
    assert world.call("list") == []
    assert world.call("clean_up") == 0


def test_a_token_without_an_end_lives_for_ttl(kind: Any, clock: Clock) -> None:
    upstream = Upstream(life_s=None)
    world = kind(upstream, clock, ttl="50s", jitter=0, refresh_before="5s")
    assert world.get().remaining_s() == 50.0
    clock.now += 50
    assert world.get().token == "token 2 of svc None"
    world.close()


def test_leases_and_shared_tokens_are_strangers(world: Any, upstream: Upstream) -> None:
    world.get()
    lease = world.pool.lease("svc")
    held = world.run(lease.acquire()) if isinstance(world, Tasks) else lease.acquire()
    assert held.token == "token 2 of svc None"
    assert held.payload == {"url": "https://2"}
    world.run(held.release()) if isinstance(world, Tasks) else held.release()
    assert world.get().token == "token 1 of svc None"
    assert upstream.given == [None, None], "a lease's login gets no refresh token"


def test_a_cancelled_caller_ends_no_login(upstream: Upstream, clock: Clock) -> None:
    async def main() -> None:
        async with AsyncTokenPool(upstream.login, clock=clock) as pool:
            upstream.open.clear()
            callers = [asyncio.create_task(pool.shared("svc").get()) for _ in range(20)]
            while not upstream.under_way:
                await asyncio.sleep(0.001)
            for caller in callers[:19]:
                caller.cancel()
            upstream.open.set()
            ended = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(each) for each in ended] == [asyncio.CancelledError] * 19 + [SharedToken]
            assert (await pool.shared("svc").get()).token == "token 1 of svc None"

    asyncio.run(main())
    assert upstream.logins == 1


def test_a_login_that_hangs_holds_up_nobody_for_longer_than_login_timeout(upstream: Upstream) -> None:
    stuck, entered = threading.Event(), threading.Event()

    def login(user: str) -> str:
        if not entered.is_set():
            entered.set()
            stuck.wait(LIMIT_S)
        return upstream.login(user, None).token

    with TokenPool(login, login_timeout="300ms", wait="50s", on_event=lambda event: None) as pool:
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            pool.shared("svc", wait="100ms").get()
        assert entered.is_set()
        assert pool.shared("svc").get().token == "token 1 of svc None"
        assert time.monotonic() - began < 30
        stuck.set()
        time.sleep(0.05)
        assert pool.shared("svc").get().token == "token 1 of svc None", "what comes late replaces nothing"


def test_a_coroutine_function_may_log_in() -> None:
    async def login(user: str, *, refresh_token: str | None = None) -> SignedIn:
        await asyncio.sleep(0.01)
        return SignedIn(f"token of {user}", 50.0, refresh_token="r")

    async def main() -> None:
        async with AsyncTokenPool(login) as pool:
            found = await asyncio.gather(*[pool.shared("svc").get() for _ in range(10)])
            assert {each.token for each in found} == {"token of svc"}

    asyncio.run(main())


def test_an_error_of_a_login_reaches_all_who_wait_for_it(kind: Any, upstream: Upstream, clock: Clock) -> None:
    world = kind(upstream, clock, wait="60s", login_backoff=("500s", "500s"), on_event=lambda event: None)
    upstream.failing = ValueError("no")
    with pytest.raises(LoginFailed) as failure:
        world.gets(10)
    assert "no" not in str(failure.value)
    assert len(upstream.given) == 1
    world.close()


def test_a_child_shares_nothing_with_its_parent(upstream: Upstream) -> None:
    """Forked while another thread of the parent asks all the time, and a login of the parent is under way."""
    with TokenPool(upstream.login, wait="30s") as pool:
        shared = pool.shared("svc")
        first = shared.get()
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                shared.get()

        asking = threading.Thread(target=ask)
        asking.start()
        upstream.open.clear()
        cold = threading.Thread(target=lambda: pool.shared("cold").get())
        cold.start()
        eventually(lambda: upstream.under_way == 1)
        child = os.fork()
        if not child:
            status = 1
            try:
                upstream.open = threading.Event()
                upstream.open.set()
                mine = shared.get().token
                status = 0 if mine != first.token and pool.shared("cold").get().token else 2
            finally:
                os._exit(status)
        upstream.open.set()
        assert os.waitpid(child, 0)[1] == 0
        stop.set()
        asking.join(LIMIT_S)
        cold.join(LIMIT_S)
        assert shared.get().token == first.token


def test_bad_arguments_are_refused_at_once(upstream: Upstream) -> None:
    with pytest.raises(ConfigError, match="refresh_before"):
        TokenPool(upstream.login, refresh_before="soon")
    with TokenPool(upstream.login) as pool:
        with pytest.raises(ValueError, match="a user is"):
            pool.shared("")
        with pytest.raises(ValueError, match="a password is"):
            pool.shared("svc", 5)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="wait"):
            pool.shared("svc", wait="soon")
        with pytest.raises(ValueError, match="a token is"):
            pool.shared("svc").invalidate("")
        with pytest.raises(LoginFailed):
            TokenPool(lambda user: SignedIn("t", payload={"x": object()}), on_event=print).shared("svc").get()


def test_a_token_that_ends_too_soon_is_no_token(clock: Clock) -> None:
    upstream = Upstream(life_s=3.0)
    pool = TokenPool(upstream.login, clock=clock, min_remaining="5s", login_rate=None)
    with pool, pytest.raises(LoginFailed, match="min_remaining"):
        pool.shared("svc").get()


def test_what_a_process_remembers_has_a_bound(clock: Clock) -> None:
    lines = SharedLines(clock, 0.0, others=True)
    first = lines.line("user 0", ())
    assert lines.line("user 0", ()) is first
    for number in range(MAX_LINES):
        lines.line(f"user {number + 1}", ())
    assert lines.line("user 0", ()) is not first


class Standing(Flights):
    """Steps that never begin: the test says what becomes of them."""

    def new_flight(self) -> Any:
        return Future()

    def start(self, flow: Any) -> None:
        flow.close()


def standing(clock: Clock) -> tuple[Standing, SharedLine]:
    pool = TokenPool(lambda user: "t", clock=clock)
    flights = Standing(pool, pool.shared_lines, pool.shared_box, 60.0)
    return flights, pool.shared_lines.line("svc", ())


def test_a_pause_is_waited_for_and_no_longer() -> None:
    clock = Clock()
    flights, line = standing(clock)
    asked = flights.get(line, None, 10.0)
    assert isinstance(next(asked), Join)
    effect = asked.throw(LoginRateLimited("svc", 9.0))
    began = clock.now
    while isinstance(effect, Sleep):
        assert effect.exactly
        assert effect.pause_s <= PAUSE_LOOK_S
        clock.now += effect.pause_s
        effect = asked.send(None)
    assert isinstance(effect, Join), "it asks again"
    assert clock.now - began == pytest.approx(9.0)
    with pytest.raises(LoginRateLimited):
        asked.throw(LoginRateLimited("svc", 1.5))


def test_who_waits_for_a_pause_takes_what_comes_meanwhile() -> None:
    clock = Clock()
    flights, line = standing(clock)
    asked = flights.get(line, None, 10.0)
    next(asked)
    assert isinstance(asked.throw(LoginRateLimited("svc", 9.0)), Sleep)
    begun = Begun(Current(1, "another caller's", 100.0, 50.0, 0.0))
    line.take(flights.lines, begun, clock.now, flights.lines.epoch)
    with pytest.raises(StopIteration) as got:
        asked.send(None)
    assert got.value.value.token == "another caller's"


def test_who_waits_for_a_pause_hears_that_the_pool_is_closed() -> None:
    clock = Clock()
    flights, line = standing(clock)
    asked = flights.get(line, None, 10.0)
    next(asked)
    assert isinstance(asked.throw(LoginRateLimited("svc", 9.0)), Sleep)
    flights.pool.close()
    with pytest.raises(PoolClosed):
        asked.send(None)


def test_a_refresh_token_that_the_store_did_not_take_is_tried_next() -> None:
    """The upstream may have killed the one before when it gave it."""
    upstream, clock = Upstream(), Clock()
    pool = TokenPool(upstream.login, logout=upstream.logout, clock=clock)
    memory = pool.memory
    assert memory is not None
    with pool:
        assert pool.shared("svc").get().token == "token 1 of svc None"
        clock.now += 101
        genuine = memory.swap_shared
        swaps = iter((True, False))

        def swap(*arguments: Any) -> bool:
            if not next(swaps, True):
                raise StoreUnavailable("away")
            return genuine(*arguments)

        memory.swap_shared = swap  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            pool.shared("svc").get()
        assert pool.reset("svc") == 0  # the slot of that login
        assert pool.shared("svc").get().token == "token 3 of svc None"
    assert upstream.given == [None, "refresh 1 of svc None", "refresh 2 of svc None"]
