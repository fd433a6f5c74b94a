"""What becomes of the tokens when a pool is closed, or softly loses them."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from itertools import count
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import LeaseLost, PoolClosed, PoolEvent, PoolEventKind

from .both_pools import BOTH, LIMIT_S, Threads, eventually

KEY = b"0123456789abcdef" * 2


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


class Upstream:
    """Its sessions, and who logged out of them."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.out: list[str] = []

    def sign_in(self, user: str) -> str:
        return f"{user}-{next(self._numbers)}"

    def sign_out(self, user: str, token: str) -> None:
        self.out.append(token)

    def opened(self, kind: type[Threads], **options: Any) -> Threads:
        return kind(self.sign_in, logout=self.sign_out, per_user=2, **options)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def borrow(pool: Threads, user: str = "ann") -> Any:
    return pool.call(pool.pool.lease(user).acquire)


@pytest.mark.parametrize(("log_out", "logged_out"), [(None, ["ann-1"]), (True, ["ann-1"]), (False, [])])
def test_what_a_process_alone_has_is_logged_out_unless_that_is_not_wanted(
    kind: type[Threads], upstream: Upstream, log_out: bool | None, logged_out: list[str]
) -> None:
    pool = upstream.opened(kind)
    pool.call(borrow(pool).release)
    pool.close(log_out=log_out)
    assert upstream.out == logged_out


def test_a_close_that_was_interrupted_can_be_repeated(
    kind: type[Threads], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = upstream.opened(kind)
    held = borrow(pool)
    with monkeypatch.context() as interrupted:
        if kind is Threads:
            interrupted.setattr("time.sleep", _ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                pool.call(pool.pool.close, "60s")
        else:
            closing = pool.start(pool.pool.close, "60s")
            eventually(lambda: pool.pool.closed)
            closing.cancel()
    assert upstream.out == []
    pool.call(held.release)
    pool.close()
    assert upstream.out == ["ann-1"]


def _ctrl_c(seconds: float) -> None:
    raise KeyboardInterrupt


def test_a_wish_that_is_unclear_closes_nothing(kind: type[Threads], upstream: Upstream) -> None:
    pool = upstream.opened(kind)
    for wrong in ("no", 2):
        with pytest.raises(ConfigError, match="log_out"):
            pool.call(pool.pool.close, log_out=wrong)
    with pytest.raises(ConfigError, match="timeout"):
        pool.call(pool.pool.close, "soon")
    pool.call(borrow(pool).release)
    pool.close()


def test_a_shared_store_keeps_its_tokens_unless_they_are_to_be_logged_out(
    kind: type[Threads], upstream: Upstream, store_url: str
) -> None:
    ours, theirs = (upstream.opened(kind, store=store_url, key=KEY) for _ in range(2))
    lent = borrow(theirs)
    for user in ("ann", "bob"):
        ours.call(borrow(ours, user).release)
    third = upstream.opened(kind, store=store_url, key=KEY)
    third.close()
    assert upstream.out == []
    ours.close(log_out=True)
    assert sorted(upstream.out) == ["ann-2", "bob-3"]
    theirs.call(lent.extend)
    lent.renew("ann-1, renewed", expires_in_s=60)
    theirs.call(lent.release)
    again = borrow(theirs)
    assert again.token == "ann-4", "what was lent then is dropped when it comes back"
    theirs.call(again.release)
    theirs.close()
    assert sorted(upstream.out) == ["ann-1, renewed", "ann-2", "bob-3"]


def test_more_than_may_wait_are_logged_out_as_well(
    kind: type[Threads], upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("logouts", "background"):
        monkeypatch.setattr(f"coatcheck.pool.{module}.MAX_LOGOUTS", 3)
    events: list[PoolEvent] = []
    begun: list[str] = []
    goes_on = threading.Event()

    def sign_out(user: str, token: str) -> None:
        begun.append(token)
        assert goes_on.wait(LIMIT_S)

    pool = kind(upstream.sign_in, logout=sign_out, on_event=events.append)
    for number in range(20):
        pool.call(borrow(pool, f"user-{number}").release)
    closing = pool.start(pool.pool.close, "60s")
    eventually(lambda: len(begun) >= 3)
    goes_on.set()
    closing.result(LIMIT_S)
    pool.close()
    assert len(begun) == 20
    assert events == []


def test_a_store_keeps_what_there_is_no_time_for(kind: type[Threads], upstream: Upstream, store_url: str) -> None:
    events: list[PoolEvent] = []
    ours = upstream.opened(kind, store=store_url, key=KEY, on_event=events.append)
    theirs = upstream.opened(kind, store=store_url, key=KEY)
    ours.call(borrow(ours).release)
    ours.close(timeout=0, log_out=True)
    assert upstream.out == []
    assert [(event.kind, event.user) for event in events] == [(PoolEventKind.LOGOUT_SKIPPED, "")]
    held = borrow(theirs)
    assert held.token == "ann-1"
    theirs.call(held.release)
    theirs.close()


def test_a_login_that_ends_after_the_pool_is_logged_out(kind: type[Threads], upstream: Upstream) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def sign_in(user: str) -> str:
        begun.set()
        assert goes_on.wait(LIMIT_S)
        return upstream.sign_in(user)

    pool = kind(sign_in, logout=upstream.sign_out)
    waiting = pool.start(pool.pool.lease("ann").acquire)
    assert begun.wait(LIMIT_S)
    pool.call(pool.pool.close, timeout=0)
    assert upstream.out == []
    goes_on.set()
    with pytest.raises((PoolClosed, CancelledError)):
        waiting.result(LIMIT_S)
    eventually(lambda: upstream.out == ["ann-1"])
    pool.close()


def test_a_soft_removal_takes_nothing_from_anybodys_hands(kind: type[Threads], upstream: Upstream) -> None:
    pool = upstream.opened(kind)
    used, idle = borrow(pool), borrow(pool)
    pool.call(idle.release)
    assert pool.call(pool.pool.remove_token, "ann", soft=True) == 2
    assert pool.stats().leased == 1, "used on"
    pool.call(used.extend)
    pool.call(used.release)
    assert pool.stats().leased == pool.stats().free == 0
    hard = borrow(pool)
    assert hard.token == "ann-3"
    assert pool.call(pool.pool.remove_token, "ann") == 1
    with pytest.raises(LeaseLost):
        pool.call(hard.release)
    pool.close()
    assert sorted(upstream.out) == ["ann-1", "ann-2", "ann-3"]
