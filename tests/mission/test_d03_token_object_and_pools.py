"""D3: "A token object: token string, usage counter (starts at 1), last-time-usage flag (starts false), expiration time.
A user pool: expiration time, maximum usage, the two tables. The session pool: username to user pool." """

from __future__ import annotations

import pytest

from coatcheck.errors import ConfigError
from coatcheck.pool import NULL_TOKEN, SessionPool, TokenObject, UserSessionPool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_object() -> None:
    token = TokenObject("string", 42.0)
    assert token.token == "string"
    assert token.usage_counter == 1
    assert token.last_time_usage is False
    assert token.expiration_time == 42.0
    assert "string" not in repr(token), "it is masked wherever it is shown"


def test_a_user_pool() -> None:
    pool = UserSessionPool("15m", 500)
    assert (pool.expiration_time, pool.maximum_usage) == (900.0, 500)
    assert (pool.locked, pool.unlocked) == ({}, {})


def test_the_session_pool_maps_user_names_to_user_pools() -> None:
    clock = Clock()
    pool = SessionPool(expiration_time=60, maximum_usage=7, clock=clock)
    for name in ("SADMIN", "GUEST"):
        pool.check_in(name, NULL_TOKEN, f"token of {name}")
    assert set(pool.users) == {"SADMIN", "GUEST"}
    for user_pool in pool.users.values():
        assert isinstance(user_pool, UserSessionPool)
        assert (user_pool.expiration_time, user_pool.maximum_usage) == (60.0, 7)
    (token,) = pool.users["SADMIN"].unlocked.values()
    assert (token.usage_counter, token.last_time_usage, token.expiration_time) == (1, False, 160.0)


@pytest.mark.parametrize(("expiration_time", "maximum_usage"), [("soon", 5), (-1, 5), (60, 0), (60, True), (60, 1.5)])
def test_wrong_settings_fail_at_once(expiration_time: object, maximum_usage: object) -> None:
    with pytest.raises(ConfigError, match=r"expiration_time|maximum_usage"):
        SessionPool(expiration_time, maximum_usage)  # type: ignore[arg-type]
    assert repr(NULL_TOKEN)
