"""D5: "Check-out first drops expired tokens from unlocked. Check-in stores the refreshed token string that the upstream
sent, renews the expiration time and unlocks. Remove drops a dead token from locked. Clean-up, called at intervals,
drops expired tokens from both tables." """

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from coatcheck.pool import NULL_TOKEN, LeaseLost, SessionPool, TokenObject, TokenPool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> SessionPool:
    return SessionPool(expiration_time=60, maximum_usage=500, clock=clock)


def test_check_out_first_drops_expired_tokens_from_unlocked(pool: SessionPool, clock: Clock) -> None:
    pool.check_in("SADMIN", NULL_TOKEN, "old")
    clock.now += 30
    pool.check_in("SADMIN", NULL_TOKEN, "young")
    clock.now += 30
    assert pool.check_out("SADMIN").token == "young"
    assert pool.users["SADMIN"].unlocked == {}, "the old one was dropped, although it was not needed"


def test_check_in_stores_the_refreshed_string_renews_and_unlocks(pool: SessionPool, clock: Clock) -> None:
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    token = pool.check_out("SADMIN")
    clock.now += 50
    pool.check_in("SADMIN", token, "refreshed")
    (unlocked,) = pool.users["SADMIN"].unlocked.values()
    assert unlocked is token
    assert (token.token, token.expiration_time) == ("refreshed", 210.0)
    clock.now += 50
    assert pool.check_out("SADMIN").token == "refreshed"


def test_remove_drops_from_locked(pool: SessionPool) -> None:
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    token = pool.check_out("SADMIN")
    assert pool.remove("SADMIN", token)
    assert (pool.users["SADMIN"].locked, pool.users["SADMIN"].unlocked) == ({}, {})
    assert not pool.remove("SADMIN", token)
    assert not pool.remove("nobody", token)
    with pytest.raises(LeaseLost):
        pool.check_in("SADMIN", token, "refreshed")


def test_clean_up_drops_expired_tokens_from_both_tables(pool: SessionPool, clock: Clock) -> None:
    for number in range(4):
        pool.check_in("SADMIN", NULL_TOKEN, f"token {number}")
    in_use = [pool.check_out("SADMIN") for _ in range(2)]
    clock.now += 59
    assert pool.clean_up() == 0
    pool.check_in("GUEST", NULL_TOKEN, "young")
    clock.now += 1
    assert pool.clean_up() == 4
    assert set(pool.users) == {"GUEST"}, "and users without tokens do not pile up"
    with pytest.raises(LeaseLost):
        pool.check_in("SADMIN", in_use[0], "refreshed")


def test_a_check_in_that_does_not_fit_changes_nothing(pool: SessionPool) -> None:
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    token = pool.check_out("SADMIN")
    stranger = TokenObject("forged", token_id=token.token_id)
    for wrong in (stranger, TokenObject("forged", token_id=77)):
        with pytest.raises(LeaseLost):
            pool.check_in("SADMIN", wrong, "mine now")
        assert not pool.remove("SADMIN", wrong)
    for bad in ("", None, 7, "x" * 70_000):
        with pytest.raises(ValueError, match="a token is"):
            pool.check_in("SADMIN", token, bad)  # type: ignore[arg-type]
    pool.check_in("SADMIN", token, "refreshed")
    with pytest.raises(LeaseLost):
        pool.check_in("SADMIN", token, "replayed")
    assert pool.check_out("SADMIN").token == "refreshed"


def test_from_several_threads_a_token_is_in_one_hand(pool: SessionPool) -> None:
    """Borrowers hold what they have while others ask, and threads change places in the middle of every line."""
    for number in range(3):
        pool.check_in("SADMIN", NULL_TOKEN, f"token {number}")
    interval_s = sys.getswitchinterval()
    held, most_held, together = Counter[int | None](), Counter[int | None](), Counter[str]()
    lock = threading.Lock()

    def call(name: str) -> None:
        for number in range(60):
            token = pool.check_out("SADMIN")
            if token is NULL_TOKEN:
                continue
            with lock:
                held[token.token_id] += 1
                most_held[token.token_id] = max(most_held[token.token_id], held[token.token_id])
                together["most"] = max(together["most"], held.total())
            time.sleep(0.0002)
            with lock:
                held[token.token_id] -= 1
            pool.check_in("SADMIN", token, f"{name}, call {number}")
            pool.clean_up()

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(call, f"thread {number}") for number in range(4)]
        for each in calls:
            each.result(0)
    finally:
        sys.setswitchinterval(interval_s)
    assert together["most"] == 3, "all three were out at one time, or the test proves nothing"
    assert set(most_held.values()) == {1}, "each in one hand"
    assert pool.users["SADMIN"].locked == {}
    assert len(pool.users["SADMIN"].unlocked) == 3


# -- the pool of leases, by the same calls


@pytest.fixture
def leases(clock: Clock) -> Iterator[TokenPool]:
    found = TokenPool(None, ttl=60, jitter=0, lease="30s", clock=clock)
    yield found
    found.close(timeout=0)  # what is out stays out: the clock stands still


def test_leases_check_out_first_drops_expired_tokens(leases: TokenPool, clock: Clock) -> None:
    leases.check_in("SADMIN", NULL_TOKEN, "old")
    clock.now += 30
    leases.check_in("SADMIN", NULL_TOKEN, "young")
    clock.now += 30
    assert leases.check_out("SADMIN").token == "young"
    assert leases.stats()["SADMIN"].free == 0, "the old one was dropped, although it was not needed"
    assert leases.check_out("SADMIN") is NULL_TOKEN


def test_leases_check_in_stores_the_refreshed_string_renews_and_unlocks(leases: TokenPool, clock: Clock) -> None:
    leases.check_in("SADMIN", NULL_TOKEN, "token")
    token = leases.check_out("SADMIN")
    assert leases.check_out("SADMIN") is NULL_TOKEN, "locked"
    clock.now += 20
    leases.check_in("SADMIN", token, "refreshed")
    clock.now += 59
    again = leases.check_out("SADMIN")
    assert (again.token, again.token_id) != ("token", token.token_id)
    assert again.token == "refreshed", "79 s after its beginning, 59 s after its renewal"
    with pytest.raises(LeaseLost):
        leases.check_in("SADMIN", token, "replayed")
    leases.check_in("SADMIN", again, "refreshed again")
    clock.now += 60
    assert leases.check_out("SADMIN") is NULL_TOKEN


def test_leases_remove_drops_from_locked(leases: TokenPool) -> None:
    leases.check_in("SADMIN", NULL_TOKEN, "token")
    token = leases.check_out("SADMIN")
    assert leases.remove("SADMIN", token)
    assert not leases.remove("SADMIN", token)
    with pytest.raises(LeaseLost):
        leases.check_in("SADMIN", token, "refreshed")
    assert leases.check_out("SADMIN") is NULL_TOKEN


def test_leases_clean_up_drops_expired_tokens_from_both_tables(leases: TokenPool, clock: Clock) -> None:
    for number in range(4):
        leases.check_in("SADMIN", NULL_TOKEN, f"token {number}")
    in_use = [leases.check_out("SADMIN") for _ in range(2)]
    clock.now += 29
    assert leases.clean_up() == 0
    clock.now += 31
    assert leases.clean_up() == 4, "two whose lease is over, two that nobody used"
    for token in in_use:
        with pytest.raises(LeaseLost):
            leases.check_in("SADMIN", token, "refreshed")
