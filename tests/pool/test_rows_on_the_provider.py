"""Rows D2 to D6 and D9 of the mission on the real provider, through a real client, with the classic calls."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.pool import NULL_TOKEN, LeaseLost, SessionPool, TokenObject, TokenPool
from mission.upstream_clients import PASSWORD, Answer, ask
from pool.soap.provider_process import ProviderProcess

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    started = ProviderProcess(
        "--user", f"*:{PASSWORD}", "--single-use", log=tmp_path_factory.mktemp("provider") / "log"
    )
    yield started
    started.end()


class Client:
    """The client application of the mission: it checks out, calls, and checks in what the provider sent back."""

    def __init__(self, provider: ProviderProcess, pool: SessionPool | TokenPool, user: str) -> None:
        self.url, self.pool, self.user = provider.url, pool, user

    def call(self) -> tuple[Answer, TokenObject]:
        token = self.pool.check_out(self.user, PASSWORD)
        if token is NULL_TOKEN:
            answer = ask(self.url, SessionType="Stateless", UsernameToken=self.user, PasswordText=PASSWORD)
        else:
            answer = ask(self.url, SessionType="Stateless", SessionToken=token.token)
        assert answer.username == self.user
        assert answer.token is not None
        self.pool.check_in(self.user, token, answer.token)
        return answer, token


def test_d2_tokens_move_between_the_tables_and_keep_their_ids(provider: ProviderProcess) -> None:
    pool = SessionPool(900)
    client = Client(provider, pool, "TWO")
    client.call()
    tables = pool.users["TWO"]
    for _ in range(3):
        token = pool.check_out("TWO", PASSWORD)
        assert (list(tables.locked.values()), tables.unlocked) == ([token], {})
        answer = ask(provider.url, SessionType="Stateless", SessionToken=token.token)
        assert answer.token not in (None, token.token), "the provider refreshes it with each response"
        pool.check_in("TWO", token, str(answer.token))
        assert (tables.locked, list(tables.unlocked)) == ({}, [token.token_id])


def test_d3_what_a_token_object_says_after_real_calls(provider: ProviderProcess) -> None:
    now = [1_000.0]
    client = Client(provider, SessionPool(900, 500, clock=lambda: now[0]), "THREE")
    assert client.call()[1] is NULL_TOKEN
    token = client.call()[1]
    assert (token.usage_counter, token.last_time_usage, token.expiration_time) == (2, False, 1_900.0)


@pytest.mark.parametrize(("check_usage", "sessions"), [(True, 3), (False, 1)])
def test_d4_no_session_is_used_more_often_than_it_may(
    provider: ProviderProcess, check_usage: bool, sessions: int
) -> None:
    client = Client(provider, SessionPool(900, 3, check_usage=check_usage), f"FOUR-{check_usage}")
    calls = [client.call() for _ in range(9)]
    used = [answer.session for answer, _ in calls]
    assert len(set(used)) == sessions
    if check_usage:
        assert all(used.count(session) == 3 for session in used)
        assert calls[2][1].last_time_usage


def test_d5_refreshed_strings_are_stored_and_expired_tokens_dropped(provider: ProviderProcess) -> None:
    now = [1_000.0]
    pool = SessionPool(60, clock=lambda: now[0])
    client = Client(provider, pool, "FIVE")
    first = client.call()[0].session
    for _ in range(4):
        now[0] += 50
        assert client.call()[0].session == first, "check-in renews; an old string would be refused by this provider"
    now[0] += 60
    assert client.call()[0].session != first, "expired: a login"
    locked = pool.check_out("FIVE", PASSWORD)
    now[0] += 60
    assert pool.clean_up() == 1, "from the locked table as well"
    with pytest.raises(LeaseLost):
        pool.check_in("FIVE", locked, "late")


def test_d6_with_the_null_token_the_client_logs_in_and_checks_in(provider: ProviderProcess) -> None:
    for pool in (SessionPool(900), TokenPool(None)):
        client = Client(provider, pool, f"SIX-{type(pool).__name__}")
        logins = provider.counter("logins")
        found = [client.call()[1] is NULL_TOKEN for _ in range(4)]
        assert found == [True, False, False, False]
        assert provider.counter("logins") - logins == 1


def test_d9_processes_share_the_session_of_one_login(provider: ProviderProcess, store_url: str) -> None:
    program = """
        import sys
        from coatcheck.pool import TokenPool
        from mission.upstream_clients import PASSWORD, ask
        url, store, key, user = sys.argv[1:]
        pool = TokenPool(None, store=store, key=key)
        token = pool.check_out(user, PASSWORD)
        answer = ask(url, SessionType="Stateless", SessionToken=token.token)
        pool.check_in(user, token, answer.token)
        print(answer.username, answer.session)
        pool.close()
    """
    user, key = f"NINE-{secrets.token_hex(4)}", secrets.token_hex(32)
    with TokenPool(None, store=store_url, key=key) as pool:
        client = Client(provider, pool, user)
        session = client.call()[0].session
        logins = provider.counter("logins")
        command = [sys.executable, "-c", textwrap.dedent(program), provider.url, store_url, key, user]
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=TESTS)
            assert done.stdout.split() == [user, session], done.stderr
            assert client.call()[0].session == session
        assert provider.counter("logins") == logins
