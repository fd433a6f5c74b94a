"""Wrong settings, arguments and callbacks: a clear error at once, and nothing lost."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import (
    NULL_TOKEN,
    AsyncTokenPool,
    LoginFailed,
    PoolClosed,
    SignedIn,
    TokenObject,
    TokenPool,
)

HUGE = 10**400
KEY = b"0123456789abcdef" * 2


def sign_in(user: str) -> str:
    return f"token of {user}"


@pytest.mark.parametrize(
    "options",
    [
        {"login_backoff": 5},
        {"login_backoff": None},
        {"login_backoff": ("1s",)},
        {"login_backoff": ("5s", "1s")},
        {"on_event": None},
        {"on_event": "print"},
        {"clock": 5},
        {"ttl": HUGE},
        {"lease": 1e300},
        {"wait": "9" * 300},
        {"keepalive_every": 1e300},
        {"login_rate": "9" * 5_000 + "/1m"},
        {"login_rate": (HUGE, "1m")},
        {"store": "sqlite:///x.db", "key": 123},
        {"store": "sqlite:///x.db", "key": [123]},
        {"store": "sqlite:///x.db", "key": []},
    ],
)
def test_a_wrong_setting_is_named_whatever_its_form(options: dict[str, Any]) -> None:
    for pool in (TokenPool, AsyncTokenPool):
        with pytest.raises(ConfigError) as refusal:
            pool(sign_in, **options)
        assert any(name in str(refusal.value) for name in options)
        assert len(str(refusal.value)) < 200


def test_keys_may_be_strings_also_in_a_list() -> None:
    TokenPool(
        sign_in,
        store="sqlite:///x.db",
        key=["m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4", b"0123456789abcdef" * 2],
    ).close()


async def _later(*_: object) -> bool:
    return False


class Callable:
    async def __call__(self, user: str, token: str) -> None: ...


@pytest.mark.parametrize("name", ["login", "logout", "probe", "keepalive"])
def test_a_pool_for_threads_refuses_coroutine_functions(name: str) -> None:
    """It would never run them: sessions would stay open, and a probe would always say yes."""
    for function in (_later, Callable()):
        options: dict[str, Any] = {"login": sign_in, name: function}
        with pytest.raises(ConfigError, match=f"{name}: a coroutine function needs an AsyncTokenPool"):
            TokenPool(**options)


@pytest.mark.parametrize("warm", [False, True])
def test_wrong_arguments_of_a_lease_are_refused_also_when_a_token_is_free(warm: bool) -> None:
    pool = TokenPool(sign_in)
    if warm:
        with pool.lease("ann"):
            pass
    for user in ([], {}, None, 5):
        with pytest.raises(ValueError, match="a user is a string"), pool.lease(user):  # type: ignore[arg-type]
            pass
    with pytest.raises(ConfigError, match="wait"):
        pool.lease("ann", wait="nonsense")
    with pytest.raises(ValueError, match="a password is a string"):
        pool.lease("ann", b"secret")  # type: ignore[arg-type]
    for token_id in ([], "x", 0, -1, True):
        with pytest.raises(ValueError, match="a fencing number"):
            pool.remove("ann", TokenObject("x", token_id=token_id))  # type: ignore[arg-type]
    assert sum(user.free for user in pool.stats().values()) == warm


def test_an_end_of_life_beyond_all_numbers_is_none() -> None:
    pool = TokenPool(lambda user: SignedIn("t", HUGE))
    with pool.lease("ann") as held:
        held.renew("t2", expires_in_s=HUGE)
    assert [row.expires_in_s is not None and row.expires_in_s <= 900 for row in pool.list()] == [True]


def test_an_observer_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(user: str) -> str:
        raise ConnectionError

    def observe(event: object) -> None:
        raise RuntimeError("no disk")

    pool = TokenPool(broken, on_event=observe)
    with pytest.raises(LoginFailed):
        pool.lease("ann").acquire()
    assert pool.stats()["ann"].login_failures_total == 1
    assert "on_event failed: RuntimeError" in caplog.text
    assert "no disk" not in caplog.text


def test_a_closed_pool_takes_no_token_in() -> None:
    pool = TokenPool(sign_in)
    pool.close()
    with pytest.raises(PoolClosed):
        pool.check_in("ann", NULL_TOKEN, "mine")
    assert pool.stats() == {}
