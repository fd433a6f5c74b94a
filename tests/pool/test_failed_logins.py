"""Whose login fails waits on, if others have tokens that he may get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck.pool import LoginFailed, LoginRefused

from .both_pools import BOTH, LIMIT_S, Threads, eventually


class Upstream:
    """One login works; what becomes of the next ones, the test says."""

    def __init__(self) -> None:
        self.logins = 0
        self.failing: Exception | None = None

    def sign_in(self, user: str, password: str | None) -> str:
        self.logins += 1
        if self.failing is not None:
            raise self.failing
        return f"token {self.logins}"


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> type[Threads]:
    return BOTH[request.param]


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, kind: type[Threads], tmp_path: Path) -> Iterator[Any]:
    upstream = Upstream()
    more: dict[str, Any] = {}
    if request.param == "sqlite":
        more = {"store": f"sqlite:///{tmp_path}/tokens.db", "key": os.urandom(32)}
    made: Any = kind(upstream.sign_in, per_user=2, wait="60s", on_event=lambda event: None, **more)
    made.upstream = upstream
    yield made
    made.close(timeout=0)


def held_by_another(world: Any, password: str | None = None) -> Any:
    held = world.call(world.pool.lease("ann", password).acquire)
    world.upstream.failing = ConnectionError("the upstream takes no more logins")
    return held


def test_a_token_that_comes_free_is_for_the_caller_whose_login_failed(world: Any) -> None:
    held = held_by_another(world)
    waiting = world.start(world.pool.lease("ann").acquire)
    eventually(lambda: world.stats().login_failures_total == 1 and world.stats().waiting == 1)
    assert not waiting.done()
    world.call(held.release)
    got = waiting.result(LIMIT_S)
    assert got.token == "token 1"
    world.call(got.release)
    assert world.stats().waiting == 0


def test_who_waits_no_longer_gets_the_failure_itself(world: Any) -> None:
    held = held_by_another(world)
    with pytest.raises(LoginFailed, match="ConnectionError") as failure:
        world.call(world.pool.lease("ann", wait="100ms").acquire)
    assert "takes no more" not in str(failure.value)
    assert world.stats().waiting == 0
    world.call(held.release)


def test_where_nobody_has_a_token_the_failure_is_told_at_once(world: Any) -> None:
    world.upstream.failing = ConnectionError()
    with pytest.raises(LoginFailed):
        world.call(world.pool.lease("ann").acquire)
    assert (world.upstream.logins, world.stats().waiting) == (1, 0)


def test_tokens_of_other_credentials_are_none_to_wait_for(world: Any) -> None:
    held = held_by_another(world, "right")
    with pytest.raises(LoginFailed):
        world.call(world.pool.lease("ann", "WRONG").acquire)
    assert world.upstream.logins == 2
    world.call(held.release)


def test_what_is_refused_for_good_is_told_at_once(world: Any) -> None:
    held = held_by_another(world)
    world.upstream.failing = LoginRefused("ann")
    with pytest.raises(LoginRefused):
        world.call(world.pool.lease("ann").acquire)
    assert world.upstream.logins == 2
    world.call(held.release)


def test_without_a_pause_after_failures_nobody_tries_again_and_again(kind: type[Threads]) -> None:
    upstream = Upstream()
    world: Any = kind(upstream.sign_in, per_user=2, wait="60s", login_backoff=(0, 0), on_event=lambda event: None)
    world.upstream = upstream
    held_by_another(world)
    with pytest.raises(LoginFailed):
        world.call(world.pool.lease("ann").acquire)
    assert upstream.logins == 2
    world.close(timeout=0)
