"""Leases that nobody gives back are told, with where they were borrowed (``leak_after``)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import PoolEvent, PoolEventKind, TokenPool

from .both_pools import BOTH, Threads, eventually

SOON_S = 0.1


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


class Told(list[PoolEvent]):
    """What a pool tells of leases that are out for long."""

    def opened(self, kind: type[Threads], **options: Any) -> Threads:
        return kind(lambda user: "t", leak_after=SOON_S, per_user=9, on_event=self.append, **options)

    def users(self) -> list[str]:
        assert all(event.kind is PoolEventKind.LEASE_HELD_LONG for event in self)
        return sorted(event.user for event in self)


def forgetful(pool: Threads, user: str) -> Any:
    async def borrow() -> Any:
        return await pool.pool.lease(user).acquire()

    def borrow_here() -> Any:
        return pool.pool.lease(user).acquire()

    return pool.call(borrow_here if isinstance(pool.pool, TokenPool) else borrow)


def test_where_it_was_borrowed_is_told_once(kind: type[Threads]) -> None:
    told = Told()
    pool = told.opened(kind)
    lost = forgetful(pool, "ann")
    late = forgetful(pool, "bob")
    eventually(lambda: len(told) == 2)
    pool.call(late.release)
    third = forgetful(pool, "cleo")
    eventually(lambda: len(told) == 3)
    assert told.users() == ["ann", "bob", "cleo"]
    first = next(event.detail for event in told if event.user == "ann")
    assert re.match(rf"lease {lost.fencing} is out for [0-9.]+ s; borrowed at \S+test_leaks.py:\d+ in borrow", first)
    assert "coatcheck/pool/threads.py" not in first
    assert "t" not in first.split()
    pool.call(third.release)
    pool.close(timeout=0)


def test_who_gives_back_in_time_is_not_told(kind: type[Threads]) -> None:
    told = Told()
    pool = told.opened(kind)
    for _ in range(20):
        pool.call(forgetful(pool, "ann").release)
    kept = forgetful(pool, "kept")
    eventually(lambda: told)
    assert told.users() == ["kept"], "of those that were borrowed before"
    pool.call(kept.release)
    pool.close()


def test_what_is_extended_is_not_forgotten(kind: type[Threads]) -> None:
    told, now = Told(), [1_000.0]
    pool = kind(lambda user: "t", leak_after="60s", on_event=told.append)
    leaks = pool.pool.leaks
    leaks._clock = lambda: now[0]
    streams, forgotten = forgetful(pool, "streams"), forgetful(pool, "forgotten")
    now[0] += 50
    pool.call(streams.extend)
    now[0] += 59
    leaks.look()
    assert told.users() == ["forgotten"]
    now[0] += 1
    leaks.look()
    assert told.users() == ["forgotten", "streams"]
    assert "is out for 110 s" in told[1].detail
    for held in (streams, forgotten):
        pool.call(held.release)
    pool.close()


def test_what_was_checked_out_is_told_too(kind: type[Threads]) -> None:
    told = Told()
    pool = told.opened(kind)
    pool.call(forgetful(pool, "ann").release)
    shown = pool.call(pool.pool.check_out, "ann")
    eventually(lambda: told)
    assert told.users() == ["ann"]
    pool.call(pool.pool.check_in, "ann", shown, "t2")
    pool.close()


def test_a_wrong_leak_after_is_refused() -> None:
    with pytest.raises(ConfigError, match="leak_after"):
        TokenPool(leak_after="never")
