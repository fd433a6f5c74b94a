"""Logins ahead of those who need them: ``warm_up`` and ``min_idle``."""

from __future__ import annotations

import threading
from itertools import count
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import LoginFailed, LoginRateLimited, LoginRefused, PoolEvent, SignedIn, TokenPool

from .both_pools import BOTH, LIMIT_S, Threads, eventually


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


class Upstream:
    """Who logged in, with what; ``open``: whether logins go on."""

    def __init__(self) -> None:
        self.logins: list[tuple[str, str | None]] = []
        self.fails = 0
        self.open = threading.Event()
        self.open.set()
        self._numbers = count(1)

    def sign_in(self, user: str, password: str | None) -> str:
        self.logins.append((user, password))
        assert self.open.wait(LIMIT_S)
        if self.fails:
            self.fails -= 1
            raise OSError("away")
        if password == "WRONG":
            raise LoginRefused(user)
        return f"{user}-{next(self._numbers)}"


def borrow(pool: Threads, *names: str, **options: Any) -> Any:
    return pool.call(pool.pool.lease(*names, **options).acquire)


def test_so_many_are_logged_in_and_then_lent(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, per_user=3)
    assert pool.call(pool.pool.warm_up, "ann", 2) == 2
    assert pool.call(pool.pool.warm_up, "ann", 2) == 0
    assert {borrow(pool, "ann").token for _ in range(2)} == {"ann-1", "ann-2"}
    assert pool.call(pool.pool.warm_up, "ann", 2) == 0, "those that are lent are there too"
    assert pool.call(pool.pool.warm_up, "ann", 9) == 1, "no more than there are slots"
    assert len(upstream.logins) == 3
    pool.close(timeout=0)


def test_those_that_nobody_will_get_again_are_not_there(kind: type[Threads]) -> None:
    pool = kind(Upstream().sign_in, per_user=3)
    held = borrow(pool, "ann")
    assert pool.call(pool.pool.remove_token, "ann", soft=True) == 1
    assert pool.call(pool.pool.warm_up, "ann", 1) == 1
    pool.call(held.release)
    assert pool.stats().free == 1
    pool.close(timeout=0)


def test_a_login_ahead_is_no_use(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, per_user=3, max_uses=1)
    assert pool.call(pool.pool.warm_up, "ann", 2) == 2
    assert pool.stats().free == 2
    assert {borrow(pool, "ann").token for _ in range(2)} == {"ann-1", "ann-2"}
    pool.close(timeout=0)


def test_what_does_not_last_is_not_logged_in_for_again_and_again(kind: type[Threads]) -> None:
    upstream = Upstream()

    def for_a_moment(user: str) -> SignedIn:
        return SignedIn(upstream.sign_in(user, None), expires_in_s=1.0)

    pool = kind(for_a_moment, min_remaining="2s", min_idle=2)
    assert pool.call(pool.pool.warm_up, "ann", 3) == 0
    assert len(upstream.logins) == 1
    pool.call(borrow(pool, "bob").release)
    held = borrow(pool, "bob")
    eventually(lambda: len(upstream.logins) == 4)
    eventually(lambda: pool.pool.users_to_keep_ready(pool.pool.memory.look()) == [])
    assert len(upstream.logins) == 4
    pool.call(held.release)
    pool.close(timeout=0)


def test_the_pool_looks_also_where_nobody_ever_had_to_wait(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, min_idle=2)
    assert pool.call(pool.pool.warm_up, "ann", 1) == 1
    eventually(lambda: pool.stats().free == 2)
    pool.close()


def test_a_login_that_ends_its_thread_does_not_end_the_looking() -> None:
    upstream = Upstream()
    ends = [SystemExit(3)]

    def sign_in(user: str) -> str:
        if upstream.logins and ends:
            raise ends.pop()
        return upstream.sign_in(user, None)

    told: list[PoolEvent] = []
    pool = BOTH["threads"](sign_in, min_idle=1, login_backoff=("50ms", "50ms"), on_event=told.append)
    held = borrow(pool, "ann")
    eventually(lambda: pool.stats().free == 1)
    assert "SystemExit" in {event.detail for event in told}
    pool.call(held.release)
    pool.close()


def test_they_are_of_the_credentials_that_were_given(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in)
    assert pool.call(pool.pool.warm_up, "ann", 1, "right") == 1
    assert pool.call(pool.pool.warm_up, "ann", 1) == 1
    assert upstream.logins == [("ann", "right"), ("ann", None)]
    assert borrow(pool, "ann", "right").token == "ann-1"
    with pytest.raises(LoginRefused):
        pool.call(pool.pool.warm_up, "ann", 1, "WRONG")
    with pytest.raises(LoginRefused):
        pool.call(pool.pool.warm_up, "ann", 1, "WRONG")
    assert upstream.logins.count(("ann", "WRONG")) == 1, "not tried again"
    pool.close(timeout=0)


def test_failures_and_limits_are_told(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, login_rate="2/1h", per_user=9)
    upstream.fails = 1
    with pytest.raises(LoginFailed):
        pool.call(pool.pool.warm_up, "ann", 1)
    with pytest.raises(LoginRateLimited):
        pool.call(pool.pool.warm_up, "ann", 1)
    with pytest.raises(LoginRateLimited):
        pool.call(pool.pool.warm_up, "bob", 5)
    assert pool.stats("bob").free == 2
    for wrong in (0, -1, True, "2"):
        with pytest.raises(ValueError):
            pool.call(pool.pool.warm_up, "bob", wrong)
    pool.close(timeout=0)


def test_whoever_waits_comes_first(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, per_user=2, login_backoff=(60, 60))
    held = borrow(pool, "ann")
    upstream.fails = 1
    with pytest.raises(LoginFailed):
        borrow(pool, "ann", wait=0)
    waiting = pool.start(pool.pool.lease("ann", wait=LIMIT_S).acquire)
    eventually(lambda: pool.stats().waiting == 1)
    before = len(upstream.logins)
    assert pool.call(pool.pool.warm_up, "ann", 2) == 0
    assert len(upstream.logins) == before
    pool.call(held.release)
    assert waiting.result(LIMIT_S).token == held.token
    pool.close(timeout=0)


def test_in_a_shared_store_too(kind: type[Threads], store_url: str) -> None:
    upstream = Upstream()
    options: dict[str, Any] = {"store": store_url, "key": b"0123456789abcdef" * 2, "per_user": 3}
    pool, other = (kind(upstream.sign_in, **options) for _ in range(2))
    assert pool.call(pool.pool.warm_up, "ann", 2, "right") == 2
    assert other.call(other.pool.warm_up, "ann", 3, "right") == 1
    assert {borrow(other, "ann", "right").token for _ in range(3)} == {"ann-1", "ann-2", "ann-3"}
    for each in (pool, other):
        each.close(timeout=0)


def test_so_many_are_kept_ready(kind: type[Threads]) -> None:
    upstream = Upstream()
    pool = kind(upstream.sign_in, per_user=4, min_idle=2)
    held = borrow(pool, "ann")
    with_password = borrow(pool, "bob", "right")
    eventually(lambda: pool.stats().free == 2)
    borrow(pool, "ann")
    eventually(lambda: pool.stats().free == 2)
    assert len(upstream.logins) == 5, "four slots of ann's, and bob"
    assert ("bob", None) not in upstream.logins, "nobody knows bob's password"
    for each in (held, with_password):
        pool.call(each.release)
    pool.close(timeout=0)


def test_a_login_ahead_that_fails_is_tried_again_after_its_pause(kind: type[Threads]) -> None:
    upstream = Upstream()
    told: list[Any] = []
    pool = kind(upstream.sign_in, min_idle=1, login_backoff=("50ms", "50ms"), on_event=told.append)
    held = borrow(pool, "ann")
    upstream.fails = 1
    eventually(lambda: pool.stats().free == 1)
    assert len(told) == 1
    assert len(upstream.logins) == 3
    pool.call(held.release)
    pool.close(timeout=0)


def test_users_who_have_nothing_any_more_are_left_alone(kind: type[Threads]) -> None:
    upstream, now = Upstream(), [1_000.0]
    pool = kind(upstream.sign_in, min_idle=2, per_user=3, ttl="60s", clock=lambda: now[0])
    held = borrow(pool, "ann")
    assert pool.pool.users_to_keep_ready(pool.pool.memory.look()) == ["ann"]
    pool.call(held.release)
    now[0] += 61
    assert pool.pool.users_to_keep_ready(pool.pool.memory.look()) == [], "all has ended"
    pool.close(timeout=0)


def test_wrong_settings_are_refused() -> None:
    for wrong in (-1, 5, True, "2"):
        with pytest.raises(ConfigError, match="min_idle"):
            TokenPool(lambda user: "t", min_idle=wrong, per_user=4)
    with pytest.raises(ConfigError, match="min_idle"):
        TokenPool(min_idle=1)
