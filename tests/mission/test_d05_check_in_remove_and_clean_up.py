"""D5: "Check-out first drops expired tokens from unlocked. Check-in stores the refreshed token string that the upstream
sent, renews the expiration time and unlocks. Remove drops a dead token from locked. Clean-up, called at intervals,
drops expired tokens from both tables." """

from __future__ import annotations

import threading

import pytest

from coatcheck.pool import NULL_TOKEN, LeaseLost, SessionPool, TokenObject


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
    for number in range(3):
        pool.check_in("SADMIN", NULL_TOKEN, f"token {number}")
    in_use: set[int | None] = set()
    problems: list[str] = []
    lock = threading.Lock()

    def call() -> None:
        for _ in range(300):
            token = pool.check_out("SADMIN")
            if token is NULL_TOKEN:
                continue
            with lock:
                if token.token_id in in_use:
                    problems.append("in two hands")
                in_use.add(token.token_id)
            with lock:
                in_use.discard(token.token_id)
            pool.check_in("SADMIN", token, token.token + "+")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert pool.users["SADMIN"].locked == {}
    assert len(pool.users["SADMIN"].unlocked) <= 3
