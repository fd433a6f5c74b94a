"""D4: "A token is valid if it has not expired (requirement 1) and its usage, raised by one at check-out, does not
exceed the maximum (requirement 2); when it equals the maximum, the last-time-usage flag is set. Which requirements
count is configurable: both, or only the first." """

from __future__ import annotations

import pytest

from coatcheck.pool import NULL_TOKEN, SessionPool, TokenPool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_expired_token_is_not_valid() -> None:
    clock = Clock()
    pool = SessionPool(expiration_time=60, maximum_usage=500, clock=clock)
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    clock.now += 59.999
    token = pool.check_out("SADMIN")
    assert token.token == "token"
    pool.check_in("SADMIN", token, "token")
    clock.now += 60
    assert pool.check_out("SADMIN") is NULL_TOKEN


def test_usage_is_raised_at_check_out_and_ends_at_the_maximum() -> None:
    pool = SessionPool(expiration_time=60, maximum_usage=3)
    pool.check_in("SADMIN", NULL_TOKEN, "token")  # the login was the first use
    seen = []
    while token := pool.check_out("SADMIN"):
        seen.append((token.usage_counter, token.last_time_usage))
        pool.check_in("SADMIN", token, "token")
    assert seen == [(2, False), (3, True)]
    assert pool.users["SADMIN"].unlocked == {}, "what is used up is gone"


def test_only_the_first_requirement() -> None:
    clock = Clock()
    pool = SessionPool(expiration_time=60, maximum_usage=3, check_usage=False, clock=clock)
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    for uses in range(2, 50):
        token = pool.check_out("SADMIN")
        assert (token.usage_counter, token.last_time_usage) == (uses, False)
        pool.check_in("SADMIN", token, "token")
    clock.now += 60
    assert pool.check_out("SADMIN") is NULL_TOKEN, "expiry still counts"


@pytest.mark.parametrize(("validity", "leases"), [("both", 3), ("expiry", 20)])
def test_the_lease_pool_has_the_same_modes(validity: str, leases: int) -> None:
    logins: list[str] = []

    def sign_in(user: str) -> str:
        logins.append(user)
        return f"token {len(logins)}"

    pool = TokenPool(sign_in, max_uses=3, validity=validity)  # type: ignore[arg-type]
    for number in range(leases):
        with pool.lease("SADMIN") as held:
            assert held.token == "token 1"
            assert held.uses == number + 1
    with pool.lease("SADMIN") as held:
        assert held.token == ("token 2" if validity == "both" else "token 1")
