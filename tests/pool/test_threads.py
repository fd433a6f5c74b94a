"""The pool for threads: logins, waiting, deadlines, errors, the end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.pool import (
    NULL_TOKEN,
    AsyncTokenPool,
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    PoolClosed,
    PoolError,
    PoolEvent,
    PoolEventKind,
    PoolFull,
    PoolTimeout,
    SignedIn,
    TokenPool,
)


class Upstream:
    """Counts what it is asked; ``slow_s`` is how long a login takes."""

    def __init__(self, slow_s: float = 0.0) -> None:
        self.slow_s = slow_s
        self.logins: list[str] = []
        self.logouts: list[str] = []
        self.open: set[str] = set()
        self.most = 0
        self.broken = False
        self._lock = threading.Lock()

    def sign_in(self, user: str) -> str:
        time.sleep(self.slow_s)
        if self.broken:
            raise ConnectionError(f"wrong password hunter2 of {user}")
        with self._lock:
            token = f"{user}-{len(self.logins)}"
            self.logins.append(token)
            self.open.add(token)
            self.most = max(self.most, len(self.open))
        return token

    def sign_out(self, user: str, token: str) -> None:
        with self._lock:
            self.logouts.append(token)
            self.open.discard(token)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work`` in so many threads; their results, or what they raised."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(30)
        try:
            results[number] = work(number)
        except Exception as error:  # noqa: BLE001 - handed to the test
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return results


def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def test_one_login_then_the_token_is_reused_and_refreshed() -> None:
    upstream = Upstream()
    with TokenPool(upstream.sign_in) as pool:
        with pool.lease("ann") as held:
            assert held.token == "ann-0"
            assert 0 < held.remaining_s() <= 60
            held.renew("ann-0-refreshed")
        with pool.lease("ann") as held:
            assert held.token == "ann-0-refreshed"
            assert "ann-0" not in repr(held)
        assert upstream.logins == ["ann-0"]
        (row,) = pool.list("ann")
        assert (row.state, row.uses) == ("free", 2)
        assert "refreshed" not in repr(row)
        stats = pool.stats()["ann"]
        assert (stats.free, stats.leases_total, stats.logins_total) == (1, 2, 1)


def test_a_stampede_of_cold_callers_costs_at_most_per_user_logins() -> None:
    upstream = Upstream(slow_s=0.05)
    with TokenPool(upstream.sign_in, per_user=3) as pool:

        def call(number: int) -> str:
            with pool.lease("ann") as held:
                return held.token

        tokens = together(24, call)
    assert len(upstream.logins) <= 3
    assert set(tokens) <= set(upstream.logins)


def test_waiting_is_first_come_first_served() -> None:
    order: list[int] = []
    with TokenPool(Upstream().sign_in, per_user=1) as pool:
        held = pool.lease("ann").acquire()

        def call(number: int) -> None:
            with pool.lease("ann"):
                order.append(number)

        threads = []
        for number in range(8):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            until(lambda number=number: pool.stats()["ann"].waiting == number + 1)
        held.release()
        for thread in threads:
            thread.join(60)
    assert order == list(range(8))


def test_waiting_ends_in_time_and_in_number() -> None:
    with TokenPool(Upstream().sign_in, per_user=1, max_waiting=1, wait="10s") as pool:
        held = pool.lease("ann").acquire()
        with pytest.raises(PoolTimeout) as refusal:
            pool.lease("ann", wait="50ms").acquire()
        assert refusal.value.waited_s == pytest.approx(0.05)
        with pytest.raises(PoolTimeout):
            pool.lease("ann", wait=0).acquire()
        waiter = threading.Thread(target=lambda: pool.lease("ann", wait=60).acquire().release())
        waiter.start()
        until(lambda: pool.stats()["ann"].waiting == 1)
        with pytest.raises(PoolFull):
            pool.lease("ann").acquire()
        assert pool.stats()["ann"].timeouts_total == 1
        pool.remove_token("ann")
        waiter.join(60)
        assert pool.stats()["ann"].waiting == 0
        with pool.lease("bob"):
            assert pool.stats()["bob"].leased == 1, "users do not wait for each other"
        assert pool.stats()["ann"].lost_total == 1
        with pytest.raises(LeaseLost):
            held.release()


def test_a_lease_past_its_deadline_is_lost_and_its_token_dropped() -> None:
    clock, upstream = Clock(), Upstream()
    events: list[PoolEvent] = []
    pool = TokenPool(upstream.sign_in, lease="60s", ttl="1h", per_user=1, clock=clock, on_event=events.append)
    held = pool.lease("ann").acquire()
    clock.now += 60
    with pytest.raises(LeaseLost):
        held.renew("x")
    with pool.lease("ann") as other:
        assert other.token == "ann-1"
        assert other.fencing > held.fencing
    with pytest.raises(LeaseLost):
        held.release(token=None)
    with pytest.raises(PoolError, match="not held"):
        held.release()
    with pytest.raises(LeaseLost), pool.lease("ann"):
        clock.now += 60
    with pytest.raises(ZeroDivisionError), pool.lease("ann"):
        clock.now += 60
        1 / 0  # noqa: B018
    assert [event.kind for event in events] == [PoolEventKind.LEASE_LOST]
    pool.close(timeout=0)


def test_extend_gives_a_new_deadline() -> None:
    clock = Clock()
    pool = TokenPool(Upstream().sign_in, lease="60s", clock=clock)
    with pool.lease("ann") as held:
        clock.now += 50
        held.extend()
        clock.now += 50
        assert held.remaining_s() == pytest.approx(10)
        resumed = pool.resume("ann", held.fencing)
        assert resumed.token == held.token
        assert resumed.remaining_s() == pytest.approx(10)
        with pytest.raises(LeaseLost):
            pool.resume("ann", held.fencing + 1)
        for wrong in (0, -1, True, "1", 2**63):
            with pytest.raises(ValueError, match="fencing number"):
                pool.resume("ann", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("on_error", "logins"), [("drop", 2), ("return", 1), ("probe", 1)])
def test_what_becomes_of_a_token_whose_call_failed(on_error: Any, logins: int) -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in, logout=upstream.sign_out, on_error=on_error, probe=lambda user, token: True)
    with pytest.raises(TimeoutError), pool.lease("ann"):
        raise TimeoutError
    with pool.lease("ann") as held:
        assert held.user == "ann"
    assert len(upstream.logins) == logins
    pool.close()
    assert upstream.open == set()


def test_a_probe_that_says_no_or_fails_drops_the_token() -> None:
    events: list[PoolEvent] = []

    def probe(user: str, token: str) -> bool:
        if token == "ann-0":
            return False
        raise ConnectionError(token)

    pool = TokenPool(Upstream().sign_in, on_error="probe", probe=probe, on_event=events.append)
    for _ in range(2):
        with pytest.raises(TimeoutError), pool.lease("ann"):
            raise TimeoutError
    assert pool.stats()["ann"].free == 0
    assert [(event.kind, event.detail) for event in events] == [(PoolEventKind.PROBE_FAILED, "ConnectionError")]


def test_the_upstream_called_it_dead() -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in, logout=upstream.sign_out)
    with pool.lease("ann") as held:
        held.drop()
        with pytest.raises(LeaseLost):
            held.renew("x")
    with pool.lease("ann") as held:
        assert held.token == "ann-1"
        held.drop(sign_out=True)
    pool.close()
    assert upstream.logouts == ["ann-1"], "a dead session needs no logout"


def test_a_token_is_logged_out_before_its_slot_is_used_again() -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in, logout=upstream.sign_out, per_user=2, max_uses=1, login_rate=None)

    def call(number: int) -> None:
        for _ in range(10):
            with pool.lease("ann") as held:
                assert held.token in upstream.open

    assert together(6, call) == [None] * 6
    pool.close()
    assert len(upstream.logins) == 60, "each token was used once"
    assert upstream.most <= 2, "the upstream never saw more sessions than per_user"
    assert upstream.open == set()


def test_failed_logins_are_reported_and_slow_down() -> None:
    upstream, clock = Upstream(), Clock()
    events: list[PoolEvent] = []
    pool = TokenPool(upstream.sign_in, per_user=3, clock=clock, on_event=events.append)
    upstream.broken = True
    with pytest.raises(LoginFailed) as failure:
        pool.lease("ann").acquire()
    assert "hunter2" not in str(failure.value)
    assert isinstance(failure.value.__cause__, ConnectionError)
    assert events == [PoolEvent(PoolEventKind.LOGIN_FAILED, "ann", "ConnectionError")]
    with pytest.raises(LoginRateLimited) as limited:
        pool.lease("ann", wait=0.5).acquire()
    assert limited.value.retry_after_s == pytest.approx(1.0)
    clock.now += 1
    with pytest.raises(LoginFailed):
        pool.lease("ann").acquire()
    with pytest.raises(LoginRateLimited) as limited:
        pool.lease("ann", wait=0).acquire()
    assert limited.value.retry_after_s == pytest.approx(2.0), "twice as long"
    clock.now += 2
    upstream.broken = False
    with pool.lease("ann"), pool.lease("ann"):
        assert pool.stats()["ann"].login_failures_total == 2


def test_no_more_logins_than_the_rate() -> None:
    clock, upstream = Clock(), Upstream()
    pool = TokenPool(upstream.sign_in, per_user=10, login_rate="3/1m", clock=clock, max_uses=1)
    for _ in range(3):
        with pool.lease("ann", wait=0):
            pass
    with pytest.raises(LoginRateLimited) as limited:
        pool.lease("ann", wait=0).acquire()
    assert limited.value.retry_after_s == pytest.approx(20.0)
    clock.now += 20
    with pool.lease("ann", wait=0) as held:
        assert held.token == "ann-3"


@pytest.mark.parametrize("error", [StopIteration("x"), GeneratorExit(), ConnectionError(), AssertionError()])
def test_a_login_that_raises_anything_keeps_no_slot(error: BaseException) -> None:
    def sign_in(user: str) -> str:
        raise error

    async def awaited() -> None:
        pool = AsyncTokenPool(sign_in, on_event=lambda event: None)
        with pytest.raises(LoginFailed):
            await pool.lease("ann").acquire()
        assert await pool.list() == []

    pool = TokenPool(sign_in, on_event=lambda event: None)
    with pytest.raises(LoginFailed):
        pool.lease("ann").acquire()
    assert pool.list() == []
    if not isinstance(error, StopIteration):  # which no future can hold
        asyncio.run(awaited())


@pytest.mark.parametrize("bad", [None, 7, b"bytes", "", "x" * 65_537, SignedIn("t", -1.0), SignedIn("", 5.0)])
def test_a_login_that_returns_nonsense_fails_and_keeps_no_slot(bad: Any) -> None:
    pool = TokenPool(lambda user: bad, per_user=1, login_backoff=(0, 0))
    for _ in range(2):
        with pytest.raises(LoginFailed):
            pool.lease("ann").acquire()
    assert pool.list() == []


def test_a_login_slower_than_its_limit_is_too_late() -> None:
    upstream = Upstream(slow_s=0.15)
    pool = TokenPool(upstream.sign_in, logout=upstream.sign_out, login_timeout="50ms", per_user=1)
    with pytest.raises(LoginFailed, match="longer"):
        pool.lease("ann").acquire()
    began = time.monotonic()
    pool.close(timeout="60s")
    assert time.monotonic() - began < 30, "an overdue slot is nobody's to wait for"
    assert upstream.open == set(), "what it brought was logged out"


def test_tokens_expire_by_their_age_and_by_the_word_of_the_upstream() -> None:
    clock = Clock()
    count = iter(range(100))
    lives = {"own": None, "theirs": 30.0}
    pool = TokenPool(
        lambda user: SignedIn(f"t{next(count)}", lives[user]), ttl="60s", jitter=0, lease="9s", clock=clock
    )

    def token(user: str) -> str:
        with pool.lease(user) as held:
            return held.token

    assert token("own") == token("own") == "t0"
    for _ in range(3):
        clock.now += 50
        assert token("own") == "t0", "each use renews its life"
    clock.now += 60
    assert token("own") == "t1"
    assert token("theirs") == "t2"
    clock.now += 20
    assert token("theirs") == "t2"
    clock.now += 10
    assert token("theirs") == "t3", "no use prolongs what the upstream limits"
    with pool.lease("theirs") as held:
        clock.now += 5
        held.renew("t3 refreshed", expires_in_s=100.0)
    clock.now += 55
    assert token("theirs") == "t3 refreshed"


def test_expiry_is_jittered_and_min_remaining_counts() -> None:
    clock = Clock()
    pool = TokenPool(lambda user: f"token of {user}", ttl="100s", jitter=0.5, clock=clock)
    for number in range(40):
        with pool.lease(f"user-{number}"):
            pass
    lives = [row.expires_in_s for row in pool.list()]
    assert all(life is not None and 50 <= life <= 100 for life in lives)
    assert len(set(lives)) > 30
    strict = TokenPool(Upstream().sign_in, ttl="100s", jitter=0, min_remaining="40s", lease="5s", clock=clock)
    with strict.lease("ann"):
        pass
    clock.now += 60
    with strict.lease("ann") as held:
        assert held.token == "ann-1"


def test_the_token_that_was_used_last_is_used_next() -> None:
    pool = TokenPool(Upstream().sign_in)
    first, second = pool.lease("ann").acquire(), pool.lease("ann").acquire()
    second.release()
    first.release()
    with pool.lease("ann") as held:
        assert held.token == first.token


def test_idle_tokens_are_kept_alive_and_dead_ones_dropped() -> None:
    touched: list[str] = []

    def touch(user: str, token: str) -> str | None:
        touched.append(token)
        if token.startswith("dead"):
            raise ConnectionError
        return "refreshed"

    events: list[PoolEvent] = []
    tokens = iter(["alive", "dead"])
    with TokenPool(
        lambda user: next(tokens), keepalive=touch, keepalive_every="40ms", on_event=events.append, jitter=0
    ) as pool:
        with pool.lease("ann"), pool.lease("ann"):
            pass
        until(lambda: "dead" in touched and "alive" in touched)
        until(lambda: [row.uses for row in pool.list()] == [1])  # the other one was dropped; and that is no use
        assert events[0].kind is PoolEventKind.KEEPALIVE_FAILED


def test_the_classic_calls_on_top() -> None:
    pool = TokenPool(None, per_user=1, max_uses=3)
    assert pool.check_out("ann", "password") is NULL_TOKEN
    pool.check_in("ann", NULL_TOKEN, "one")
    with pytest.raises(PoolFull):
        pool.check_in("ann", NULL_TOKEN, "two", "password")
    assert pool.check_out("ann") is NULL_TOKEN, "without the password"
    token = pool.check_out("ann", "password")
    assert (token.token, token.usage_counter, token.last_time_usage) == ("one", 2, False)
    assert pool.check_out("ann") is NULL_TOKEN
    pool.check_in("ann", token, "one again")
    for wrong in (token, NULL_TOKEN):
        with pytest.raises((LeaseLost, PoolFull)):
            pool.check_in("ann", wrong, "replayed", "password")
    token = pool.check_out("ann", "password")
    assert (token.token, token.last_time_usage) == ("one again", True)
    assert pool.remove("ann", token)
    assert not pool.remove("ann", token)
    assert not pool.remove("ann", NULL_TOKEN)
    with pytest.raises(LoginFailed, match="no login function"):
        pool.lease("ann").acquire()


def test_login_may_take_the_password() -> None:
    seen: list[tuple[str, str | None]] = []

    def sign_in(user: str, password: str | None) -> str:
        seen.append((user, password))
        return f"token {len(seen)}"

    pool = TokenPool(sign_in)
    with pool.lease("ann", "secret") as first, pool.lease("ann") as second:
        assert first.token != second.token
        assert "secret" not in repr(first) + repr(pool)
    assert seen == [("ann", "secret"), ("ann", None)]


def test_closing_waits_wakes_and_logs_out() -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in, logout=upstream.sign_out, per_user=1)
    held = pool.lease("ann").acquire()
    waiting: list[Any] = []
    waiter = threading.Thread(target=lambda: waiting.append(together(1, lambda _: pool.lease("ann").acquire())[0]))
    waiter.start()
    until(lambda: pool.stats()["ann"].waiting == 1)
    threading.Timer(0.1, held.release).start()
    pool.close()
    waiter.join(60)
    assert isinstance(waiting[0], PoolClosed)
    with pytest.raises(PoolClosed):
        pool.lease("ann").acquire()
    assert upstream.logouts == ["ann-0"]
    pool.close()
    assert issubclass(PoolClosed, CoatcheckError)


def test_a_logout_that_hangs_or_fails_holds_nobody_up() -> None:
    stop = threading.Event()
    events: list[PoolEvent] = []

    def sign_out(user: str, token: str) -> None:
        if user == "hangs":
            stop.wait(120)
        raise ConnectionError("no")

    pool = TokenPool(Upstream().sign_in, logout=sign_out, logout_timeout="1s", per_user=1, on_event=events.append)
    for user in ("hangs", "fails"):
        began = time.monotonic()
        with pool.lease(user) as held:
            held.drop(sign_out=True)
        assert time.monotonic() - began < 60
        with pool.lease(user) as again:
            assert again.token.endswith("-1") or again.token.endswith("-2") or again.token.endswith("-3")
    assert PoolEvent(PoolEventKind.LOGOUT_FAILED, "fails", "ConnectionError") in events
    began = time.monotonic()
    pool.close(timeout="200ms")
    assert time.monotonic() - began < 60
    stop.set()


def test_a_fork_does_not_use_its_parents_tokens() -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in)
    with pool.lease("ann"):
        pass
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with pool.lease("ann") as held:
                os.write(write, held.token.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"ann-1"
    with pool.lease("ann") as held:
        assert held.token == "ann-0"


@pytest.mark.parametrize(
    "options",
    [
        {"per_user": 0},
        {"per_user": True},
        {"per_user": 2.5},
        {"max_uses": 0},
        {"ttl": "soon"},
        {"ttl": 0},
        {"lease": -1},
        {"wait": "1 week"},
        {"jitter": 1},
        {"jitter": "much"},
        {"validity": "never"},
        {"on_error": "panic"},
        {"on_error": "probe"},
        {"login_rate": "often"},
        {"login_rate": "0/1m"},
        {"login_rate": "5"},
        {"max_waiting": 0},
        {"min_remaining": "15m"},
        {"store": "mysql://host/db", "key": b"0123456789abcdef" * 2},
        {"store": "sqlite:///x.db"},
        {"store": "sqlite://x.db", "key": b"0123456789abcdef" * 2},
        {"store": "sqlite:///x.db", "key": b"short"},
        {"store": "redis://localhost:port", "key": b"0123456789abcdef" * 2},
        {"name": ""},
        {"logout": "sign_out"},
        {"prefer": "tea"},
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refusal:
        TokenPool(lambda user: "t", **options)
    told = str(refusal.value)
    assert any(name in told for name in options) or "key" in told or "probe" in told
    assert "\n" not in told


@pytest.mark.parametrize("user", ["", "x" * 1_025, "a\nb", "a\x00b", None, 7, b"ann"])
def test_wrong_users_are_refused_before_anything_happens(user: Any) -> None:
    upstream = Upstream()
    pool = TokenPool(upstream.sign_in)
    for call in (
        lambda: pool.lease(user).acquire(),
        lambda: pool.check_out(user),
        lambda: pool.check_in(user, NULL_TOKEN, "t"),
        lambda: pool.remove(user, NULL_TOKEN),
        lambda: pool.remove_token(user),
    ):
        with pytest.raises(ValueError, match="a user is a string"):
            call()
    assert upstream.logins == []
    assert pool.stats() == {}


@pytest.mark.parametrize("token", ["", "x" * 65_537, None, 7, b"token", "\ud800"])
def test_wrong_tokens_are_refused_and_the_lease_stays(token: Any) -> None:
    pool = TokenPool(Upstream().sign_in)
    with pool.lease("ann") as held:
        with pytest.raises(ValueError, match="a token is"):
            held.renew(token)
        with pytest.raises(ValueError, match="expires_in_s"):
            held.renew("fine", expires_in_s=0)
        assert held.token == "ann-0"
    classic = pool.check_out("ann")
    with pytest.raises(ValueError, match="a token is"):
        pool.check_in("ann", classic, token)
    with pytest.raises(ValueError, match="TokenObject"):
        pool.check_in("ann", "ann-0", "ann-0")  # type: ignore[arg-type]
    pool.check_in("ann", classic, "fine")
    assert pool.stats()["ann"].free == 1
