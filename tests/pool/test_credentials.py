"""A token belongs to the credentials that opened it."""

from __future__ import annotations

import pytest

from coatcheck.pool import LoginFailed, TokenPool


class Upstream:
    """Knows ada's password, and counts who logs in with what."""

    def __init__(self, password: str = "right") -> None:
        self.password = password
        self.given: list[str | None] = []
        self.logged_out: list[str] = []

    def login(self, user: str, password: str | None) -> str:
        self.given.append(password)
        if password != self.password:
            raise PermissionError("wrong password")
        return f"session {len(self.given)} of {user}"

    def logout(self, user: str, token: str) -> None:
        self.logged_out.append(token)


def test_a_wrong_password_gets_no_live_session() -> None:
    upstream = Upstream()
    with TokenPool(upstream.login) as pool:
        with pool.lease("ada", "right") as held:
            live = held.token
        with pytest.raises(LoginFailed), pool.lease("ada", "WRONG", wait=0):
            pass
        with pool.lease("ada", "right") as held:
            assert held.token == live
    assert upstream.given == ["right", "WRONG"]
