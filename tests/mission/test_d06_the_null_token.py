"""D6: "With no valid token, check-out returns the null token; the client logs in at the upstream with credentials, and
checks the new token in." """

from __future__ import annotations

import pytest

from coatcheck.pool import NULL_TOKEN, SessionPool, TokenPool


class Upstream:
    """Somebody else's service: a call is made with credentials, or with a token, and answers with a fresh token."""

    def __init__(self) -> None:
        self.sessions = 0
        self.valid: set[str] = set()

    def call(self, *, user: str = "", password: str = "", token: str = "") -> str:
        if token:
            assert token in self.valid
            self.valid.discard(token)
        else:
            assert (user, password) == ("SADMIN", "secret")
            self.sessions += 1
        fresh = f"{token or self.sessions}'"
        self.valid.add(fresh)
        return fresh


@pytest.mark.parametrize("pool", [SessionPool(60, 500), TokenPool(None, ttl=60)], ids=["classic", "leases"])
def test_the_client_logs_in_and_checks_the_new_token_in(pool: SessionPool | TokenPool) -> None:
    upstream = Upstream()
    for _ in range(5):
        token = pool.check_out("SADMIN", "secret")
        if token is NULL_TOKEN:
            fresh = upstream.call(user="SADMIN", password="secret")
        else:
            fresh = upstream.call(token=token.token)
        pool.check_in("SADMIN", token, fresh)
    assert upstream.sessions == 1, "one login for five calls"


def test_the_null_token_says_so() -> None:
    pool = SessionPool(60, 500)
    token = pool.check_out("SADMIN", "secret")
    assert token is NULL_TOKEN
    assert not token
    assert token.token == ""
    assert "null" in repr(token)
    pool.check_in("SADMIN", token, "fresh")
    assert pool.check_out("SADMIN", "secret"), "a token that is valid is true"
    assert NULL_TOKEN.token == "", "the null token itself stays what it is"
