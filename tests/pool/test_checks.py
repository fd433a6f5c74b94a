"""Tokens that were idle for long are asked for before they are lent (``check_after``)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import LoginRateLimited, PoolEvent, PoolEventKind, PoolTimeout, TokenPool

from .both_pools import BOTH, LIMIT_S, Threads, eventually

AGE_S = 30.0


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


class Upstream:
    """Its sessions, and a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.alive: set[str] = set()
        self.asked: list[str] = []
        self.told: list[PoolEvent] = []
        self.fails = False
        self.slow = threading.Event()
        self.slow.set()
        self.out: list[str] = []

    def sign_in(self, user: str) -> str:
        token = f"{user}-{len(self.alive | set(self.asked)) + 1}"
        self.alive.add(token)
        return token

    def is_alive(self, user: str, token: str) -> bool:
        self.asked.append(token)
        assert self.slow.wait(LIMIT_S)
        if self.fails:
            raise OSError("away")
        return token in self.alive

    def opened(self, kind: type[Threads], **options: Any) -> Threads:
        options = {
            "clock": lambda: self.now,
            "per_user": 2,
            "check_after": AGE_S,
            "on_event": self.told.append,
        } | options
        return kind(self.sign_in, probe=self.is_alive, logout=self.sign_out, **options)

    def sign_out(self, user: str, token: str) -> None:
        self.out.append(token)


def borrow(pool: Threads, **options: Any) -> Any:
    return pool.call(pool.pool.lease("ann", **options).acquire)


def two_idle(pool: Threads) -> None:
    for held in [borrow(pool), borrow(pool)]:
        pool.call(held.release)


def test_only_what_was_idle_for_so_long_is_asked_for(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind)
    pool.call(borrow(pool).release)
    upstream.now += AGE_S - 0.1
    pool.call(borrow(pool).release)
    assert upstream.asked == []
    upstream.now += AGE_S
    held = borrow(pool)
    assert upstream.asked == [held.token] == ["ann-1"]
    assert held.uses == 3
    pool.close(timeout=0)


def test_the_dead_are_dropped_until_one_is_alive(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind)
    two_idle(pool)
    upstream.now += AGE_S
    upstream.alive.discard("ann-2")
    held = borrow(pool, wait=0)
    assert held.token == "ann-1"
    assert upstream.asked == ["ann-2", "ann-1"]
    assert upstream.out == [], "the upstream has no session to log out of"
    pool.call(held.release)
    assert pool.stats().free == 1
    upstream.now += AGE_S
    upstream.alive.clear()
    assert borrow(pool, wait=0).token in upstream.alive
    pool.close(timeout=0)


def test_a_probe_that_fails_is_told_and_leaves_nothing_lent(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind)
    two_idle(pool)
    upstream.now += AGE_S
    upstream.fails = True
    held = borrow(pool)
    assert [event.kind for event in upstream.told] == [PoolEventKind.PROBE_FAILED] * 2
    eventually(lambda: sorted(upstream.out) == ["ann-1", "ann-2"])  # which may be alive
    pool.call(held.release)
    stats = pool.stats()
    assert (stats.free, stats.leased) == (1, 0)
    pool.close(timeout=0)


def test_who_is_cancelled_meanwhile_leaves_nothing_lent() -> None:
    upstream = Upstream()
    pool = upstream.opened(BOTH["asyncio"])
    two_idle(pool)
    upstream.now += AGE_S
    upstream.slow.clear()
    asking = pool.start(pool.pool.lease("ann").acquire)
    eventually(lambda: upstream.asked)
    asking.cancel()
    upstream.slow.set()
    eventually(lambda: pool.stats().leased == 0)
    assert pool.stats().free == 1
    eventually(lambda: upstream.out == ["ann-2"])
    pool.close()


def test_who_waits_no_longer_after_a_check_is_told(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind, per_user=1, login_rate="1/1h")
    pool.call(borrow(pool).release)
    upstream.now += AGE_S
    upstream.alive.clear()
    upstream.slow.clear()
    asking = pool.start(pool.pool.lease("ann", wait="5s").acquire)
    eventually(lambda: upstream.asked)
    upstream.now += 6
    upstream.slow.set()
    with pytest.raises((PoolTimeout, LoginRateLimited)):
        asking.result(LIMIT_S)
    pool.close(timeout=0)


def test_a_check_that_outlasts_the_lease_lends_nothing_that_is_over(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind, lease="20s")
    pool.call(borrow(pool).release)
    upstream.now += AGE_S
    upstream.slow.clear()
    asking = pool.start(pool.pool.lease("ann", wait="1h").acquire)
    eventually(lambda: upstream.asked)
    upstream.now += 20
    upstream.slow.set()
    assert asking.result(LIMIT_S).remaining_s() == 20
    pool.close(timeout=0)


def test_in_a_shared_store_too(kind: type[Threads], store_url: str) -> None:
    upstream = Upstream()
    options = {"store": store_url, "key": b"0123456789abcdef" * 2, "check_after": "1ms"}
    pool = kind(upstream.sign_in, probe=upstream.is_alive, **options)
    pool.call(borrow(pool).release)
    upstream.alive.clear()
    time.sleep(0.01)  # nobody uses it
    assert borrow(pool).token in upstream.alive
    assert upstream.asked == ["ann-1"]
    pool.close(timeout=0)


def test_a_login_is_not_asked_for_and_nobody_waits_longer_than_said(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = upstream.opened(kind, per_user=1)
    held = borrow(pool)
    assert upstream.asked == []
    with pytest.raises(PoolTimeout):
        borrow(pool, wait=0)
    pool.call(held.release)
    upstream.now += AGE_S
    assert borrow(pool, wait=0).token == "ann-1"
    assert upstream.asked == ["ann-1"]
    pool.close(timeout=0)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="check_after needs a function"):
        TokenPool(check_after="30s")
    with pytest.raises(ConfigError, match="max_users"):
        TokenPool(max_users=0)
    with pytest.raises(ConfigError, match="max_users: a pool with a store"):
        TokenPool(max_users=5, store="sqlite:///tokens.db", key=b"0123456789abcdef" * 2)
