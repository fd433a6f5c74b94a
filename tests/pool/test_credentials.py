"""A token belongs to the credentials that opened it, in every pool and with every store."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from coatcheck.pool import (
    NULL_TOKEN,
    AsyncTokenPool,
    LoginFailed,
    LoginRateLimited,
    LoginRefused,
    PoolFull,
    PoolTimeout,
    SessionPool,
    TokenPool,
)
from coatcheck.pool import classic as classic_pool
from pool.conftest import running


class Upstream:
    """Knows ada's password, and counts who logs in with what."""

    def __init__(self, password: str | None = "right", *, for_good: bool = False) -> None:
        self.password = password
        self.for_good = for_good
        self.given: list[str | None] = []
        self.logged_out: list[str] = []

    def login(self, user: str, password: str | None) -> str:
        self.given.append(password)
        if password != self.password:
            raise LoginRefused(user) if self.for_good else PermissionError("wrong password")
        return f"session {len(self.given)} of {user}"

    def logout(self, user: str, token: str) -> None:
        self.logged_out.append(token)


@pytest.fixture(params=["memory", "sqlite", "redis", "postgresql"])
def store(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of one pool with each store."""
    if request.param == "memory":
        yield {}
        return
    for backend in running(request.param):
        yield {"store": backend.url, "key": secrets.token_bytes(32), "name": secrets.token_hex(4)}


def use(pool: TokenPool, password: str | None, user: str = "ada") -> str:
    with pool.lease(user, password, wait=0) as held:
        return held.token


def test_a_wrong_password_gets_no_live_session(store: dict[str, Any]) -> None:
    upstream = Upstream()
    with TokenPool(upstream.login, **store) as pool:
        live = use(pool, "right")
        for wrong in ("WRONG", "", "right ", None):
            with pytest.raises(LoginFailed):
                use(pool, wrong)
            assert use(pool, "right") == live, "and the right one goes on"
    assert upstream.given == ["right", "WRONG", "", "right ", None]


def test_a_token_that_was_opened_without_a_password_is_for_callers_without_one(store: dict[str, Any]) -> None:
    upstream = Upstream(None)
    with TokenPool(upstream.login, **store) as pool:
        live = use(pool, None)
        with pytest.raises(LoginFailed):
            use(pool, "guess")
        assert use(pool, None) == live
    assert upstream.given == [None, "guess"]


def test_a_password_that_fails_again_and_again_does_not_lock_the_right_one_out(store: dict[str, Any]) -> None:
    upstream = Upstream()
    with TokenPool(upstream.login, login_backoff=("50s", "60s"), login_rate="1/60m", **store) as pool:
        with pytest.raises(LoginFailed):
            use(pool, "WRONG")
        with pytest.raises(LoginRateLimited):
            use(pool, "WRONG")
        assert use(pool, "right") == "session 2 of ada"
        with pytest.raises(LoginRateLimited):
            use(pool, "WRONG")
    assert upstream.given == ["WRONG", "right"]


def test_many_wrong_passwords_are_held_off_and_the_right_one_is_not(store: dict[str, Any]) -> None:
    upstream = Upstream()
    with TokenPool(upstream.login, login_backoff=("50s", "60s"), **store) as pool:
        use(pool, "right")
        for number in range(30):
            with pytest.raises(LoginFailed if number < 8 else LoginRateLimited):
                use(pool, f"guess {number}")
        pool.remove_token("ada")
        assert use(pool, "right") == "session 10 of ada"
    assert len(upstream.given) == 10


def test_a_changed_password_does_not_wait_for_the_sessions_of_the_old_one(store: dict[str, Any]) -> None:
    upstream = Upstream("old")
    with TokenPool(upstream.login, logout=upstream.logout, per_user=1, **store) as pool:
        use(pool, "old")
        upstream.password = "new"
        with pool.lease("ada", "new", wait="10s") as held:
            assert held.token == "session 2 of ada"
            with pytest.raises(PoolTimeout):
                use(pool, "old")
        assert upstream.logged_out == ["session 1 of ada"]


def test_credentials_that_are_refused_for_good_are_not_tried_again(store: dict[str, Any]) -> None:
    upstream = Upstream(for_good=True)
    with TokenPool(upstream.login, login_backoff=(0, 0), **store) as pool:
        for _ in range(3):
            with pytest.raises(LoginRefused) as refusal, pool.lease("ada", "WRONG", wait="60s"):
                pass
            assert "WRONG" not in str(refusal.value)
        assert upstream.given == ["WRONG"]
        assert use(pool, "right") == "session 2 of ada"
        pool.reset("ada")
        with pytest.raises(LoginRefused):
            use(pool, "WRONG")
    assert upstream.given == ["WRONG", "right", "WRONG"]


def test_those_who_wait_with_refused_credentials_are_told(store: dict[str, Any]) -> None:
    logins: list[str] = []

    async def run() -> None:
        asked = asyncio.Event()

        async def login(user: str, password: str | None) -> str:
            logins.append(user)
            await asked.wait()
            raise LoginRefused(user)

        async with AsyncTokenPool(login, per_user=1, **store) as pool:
            callers = [asyncio.create_task(pool.lease("ada", "WRONG", wait="60s").acquire()) for _ in range(5)]
            while sum(row.waiting for row in (await pool.stats()).values()) < 4:
                await asyncio.sleep(0.01)
            asked.set()
            results = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 30)
        assert [type(result) for result in results] == [LoginRefused] * 5
        assert logins == ["ada"]

    asyncio.run(run())


def test_asyncio_has_the_same_rules(store: dict[str, Any]) -> None:
    async def run() -> None:
        upstream = Upstream(for_good=True)
        async with AsyncTokenPool(upstream.login, **store) as pool:
            async with pool.lease("ada", "right") as held:
                live = held.token
            for _ in range(2):
                with pytest.raises(LoginRefused):
                    await pool.lease("ada", "WRONG").acquire()
            async with pool.lease("ada", "right") as held:
                assert held.token == live
            assert await pool.check_out("ada", "WRONG") is NULL_TOKEN
            assert await pool.check_out("ada") is NULL_TOKEN
            token = await pool.check_out("ada", "right")
            assert token.token == live
            await pool.check_in("ada", token, live)
        assert upstream.given == ["right", "WRONG"]

    asyncio.run(run())


def test_the_classic_calls_ask_for_the_same_credentials(store: dict[str, Any]) -> None:
    with TokenPool(None, **store) as pool:
        assert pool.check_out("ada", "right") is NULL_TOKEN
        pool.check_in("ada", NULL_TOKEN, "live")
        assert pool.check_out("ada", "WRONG") is NULL_TOKEN
        assert pool.check_out("ada") is NULL_TOKEN
        token = pool.check_out("ada", "right")
        assert token.token == "live"
        pool.check_in("ada", token, "live, refreshed")
        token = pool.check_out("ada", "right")
        assert token.token == "live, refreshed"
        pool.check_in("ada", token, "live")


def test_the_session_pool_asks_for_the_same_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic_pool, "MAX_TOKENS_PER_USER", 2)
    pool = SessionPool(60)
    assert pool.check_out("ada", "right") is NULL_TOKEN
    pool.check_in("ada", NULL_TOKEN, "live")
    for other in ("WRONG", "", None):
        assert pool.check_out("ada", other) is NULL_TOKEN
    token = pool.check_out("ada", "right")
    assert token.token == "live"
    assert "right" not in repr(token) + repr(vars(pool)) + repr(token._credentials)
    pool.check_in("ada", token, "live, refreshed")
    pool.check_in("ada", NULL_TOKEN, "second", "right")
    with pytest.raises(PoolFull):
        pool.check_in("ada", NULL_TOKEN, "third", "right")
    pool.check_in("ada", NULL_TOKEN, "changed", "new")
    assert pool.check_out("ada", "new").token == "changed", "an idle one of the old password made room"
    assert pool.check_out("ada", "right").token == "second"
    assert pool.check_out("ada", "right") is NULL_TOKEN


def test_what_another_thread_or_task_checks_in_is_not_taken_for_ours() -> None:
    for pool in (SessionPool(60), TokenPool(None)):
        assert contextvars.copy_context().run(pool.check_out, "ada", "WRONG") is NULL_TOKEN
        pool.check_in("ada", NULL_TOKEN, "somebody's")
        assert pool.check_out("ada", "WRONG") is NULL_TOKEN
        assert pool.check_out("ada").token == "somebody's"


def test_two_pools_and_two_users_do_not_share_what_they_remember() -> None:
    first, second = SessionPool(60), SessionPool(60)
    first.check_out("ada", "a")
    second.check_out("ada", "b")
    first.check_out("bob", "c")
    first.check_in("ada", NULL_TOKEN, "ada's")
    first.check_in("bob", NULL_TOKEN, "bob's")
    second.check_in("ada", NULL_TOKEN, "ada's second")
    assert first.check_out("ada", "a").token == "ada's"
    assert first.check_out("bob", "c").token == "bob's"
    assert second.check_out("ada", "b").token == "ada's second"


def test_nothing_that_is_told_has_the_credentials() -> None:
    told: list[str] = []
    upstream = Upstream("secret of ada", for_good=True)
    pool = TokenPool(upstream.login, on_event=lambda event: told.append(repr(event) + event.line))
    use(pool, "secret of ada")
    with pytest.raises(LoginRefused) as refusal:
        use(pool, "secret of eve")
    state, _ = pool.memory.look()["ada"]  # type: ignore[union-attr]
    told += [str(refusal.value), repr(state), repr(pool.list()), repr(pool.stats())]
    told.append(repr(pool.lease("ada", "secret of ada")))
    assert told
    assert not [text for text in told if "secret" in text]


def test_a_key_that_is_rotated_costs_no_login(store_url: str) -> None:
    upstream, old, new = Upstream(), secrets.token_bytes(32), secrets.token_bytes(32)
    with TokenPool(upstream.login, store=store_url, key=[old, new]) as pool:
        live = use(pool, "right")
    with TokenPool(upstream.login, store=store_url, key=[new, old]) as pool:
        assert use(pool, "right") == live
    with TokenPool(upstream.login, store=store_url, key=[new]) as pool:
        assert use(pool, "right") == live
    assert upstream.given == ["right"]


def test_a_late_login_counts_for_the_credentials_that_it_tried() -> None:
    """Its caller has left, and its slot is somebody else's; the others who give no password know nothing of it."""

    async def run() -> None:
        under_way, is_taken = asyncio.Event(), asyncio.Event()

        async def login(user: str, password: str | None) -> str:
            if password == "slow":
                under_way.set()
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    await is_taken.wait()
                    raise LoginRefused(user) from None
            return f"a session for {password}"

        pool = AsyncTokenPool(login, per_user=1, login_timeout="0.5s")
        async with pool:
            slow = asyncio.create_task(pool.lease("ada", "slow").acquire())
            await under_way.wait()
            slow.cancel()
            assert await pool.lease("ada", "right", wait="60s").acquire(), "its slot ends at login_timeout"
            is_taken.set()
            async with asyncio.timeout(60):
                while not (await pool.stats())["ada"].login_failures_total:
                    await asyncio.sleep(0.01)
            refused = False
            try:
                await pool.lease("ada", wait=0).acquire()
            except LoginRefused:
                refused = True
            except PoolTimeout:
                pass  # no slot is free
            assert not refused, "nobody else's password was refused"
            with pytest.raises(LoginRefused):
                await pool.lease("ada", "slow", wait=0).acquire()
            assert await pool.remove_token("ada") == 1

    asyncio.run(run())
