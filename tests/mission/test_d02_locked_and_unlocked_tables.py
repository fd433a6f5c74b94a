"""D2: "Per user there are unlocked (free) and locked (in use) tables from token ID to token; check-out moves a token to
locked, check-in back to unlocked." """

from __future__ import annotations

from coatcheck.pool import NULL_TOKEN, SessionPool, UserSessionPool


def test_check_out_moves_to_locked_and_check_in_back_to_unlocked() -> None:
    pool = SessionPool(expiration_time="15m", maximum_usage=500)
    pool.check_in("SADMIN", NULL_TOKEN, "token 1", "password")
    pool.check_in("SADMIN", NULL_TOKEN, "token 2", "password")
    user = pool.users["SADMIN"]
    assert isinstance(user, UserSessionPool)
    assert (len(user.unlocked), user.locked) == (2, {})
    assert all(token.token_id == token_id for token_id, token in user.unlocked.items()), "from token ID to token"

    token = pool.check_out("SADMIN", "password")
    assert token.token_id is not None
    assert user.locked == {token.token_id: token}
    assert token.token_id not in user.unlocked
    assert len(user.unlocked) == 1

    pool.check_in("SADMIN", token, "refreshed")
    assert user.locked == {}
    assert user.unlocked[token.token_id] is token, "the ID stays when the string changes"


def test_each_user_has_tables_of_its_own() -> None:
    pool = SessionPool(expiration_time="15m", maximum_usage=500)
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    assert pool.check_out("GUEST") is NULL_TOKEN
    assert len(pool.users["SADMIN"].unlocked) == 1
    assert pool.check_out("SADMIN").token == "token"


def test_a_token_in_use_is_not_handed_out_again() -> None:
    pool = SessionPool(expiration_time="15m", maximum_usage=500)
    pool.check_in("SADMIN", NULL_TOKEN, "token")
    assert pool.check_out("SADMIN").token == "token"
    assert pool.check_out("SADMIN") is NULL_TOKEN
