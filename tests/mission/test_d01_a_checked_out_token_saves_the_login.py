"""D1: "A client application checks a token out of a pool for a user (with the user's credentials) and calls
the upstream with it: no new session is set up." """

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coatcheck.pool import LoginFailed, TokenPool
from pool.soap.provider_process import ProviderProcess

from .upstream_clients import CALLERS, PASSWORD, ask


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    started = ProviderProcess("--user", f"*:{PASSWORD}", log=tmp_path_factory.mktemp("provider") / "log")
    yield started
    started.end()


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_calls_with_checked_out_tokens_set_up_one_session(library: str, provider: ProviderProcess) -> None:
    caller = CALLERS[library](provider.url, f"ANN-{library}")
    logins = provider.counter("logins")
    answers = [caller.call() for _ in range(10)]
    assert {answer.username for answer in answers} == {f"ANN-{library}"}
    assert len({answer.session for answer in answers}) == 1
    assert provider.counter("logins") - logins == 1
    caller.close()


def test_without_a_pool_each_call_sets_up_a_session(provider: ProviderProcess) -> None:
    logins = provider.counter("logins")
    answers = [ask(provider.url, UsernameToken="BOB", PasswordText=PASSWORD) for _ in range(10)]
    assert len({answer.session for answer in answers}) == 10
    assert provider.counter("logins") - logins == 10


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_one_pool_keeps_its_users_apart(library: str, provider: ProviderProcess) -> None:
    names = [f"{name}-{library}" for name in ("CAT", "DAN", "EVE")]
    first = CALLERS[library](provider.url, names[0])
    callers = [first, *(CALLERS[library](provider.url, name, pool=first.pool) for name in names[1:])]
    logins = provider.counter("logins")
    sessions: dict[str, set[str | None]] = {name: set() for name in names}
    for _ in range(3):
        for caller, name in zip(callers, names, strict=True):
            answer = caller.call()
            assert answer.username == name, "no call is made in another user's name"
            sessions[name].add(answer.session)
    assert all(len(found) == 1 for found in sessions.values())
    assert len(set().union(*sessions.values())) == len(names)
    assert provider.counter("logins") - logins == len(names)
    assert {name: row.free for name, row in first.pool.stats().items()} == dict.fromkeys(names, 1)
    first.close()


@pytest.mark.parametrize("wrong", ["guess", ""])
def test_without_the_users_credentials_there_is_no_token(wrong: str, provider: ProviderProcess) -> None:
    """The credentials go to the upstream as the caller gave them; what it refuses puts nothing into the pool."""
    given: list[tuple[str, str | None]] = []

    def log_in(user: str, password: str | None) -> str:
        given.append((user, password))
        answer = ask(provider.url, SessionType="Stateless", UsernameToken=user, PasswordText=password or "")
        if answer.token is None:
            raise PermissionError(answer.reason)
        return answer.token

    with TokenPool(log_in, per_user=2) as pool:
        with pytest.raises(LoginFailed), pool.lease("FAY", wrong):
            pass
        assert pool.stats()["FAY"].free == 0
    with TokenPool(log_in, per_user=2) as pool:
        for _ in range(3):
            with pool.lease("FAY", PASSWORD) as held:
                answer = ask(provider.url, SessionType="Stateless", SessionToken=held.token)
                assert answer.username == "FAY"
                assert answer.token is not None
                held.renew(answer.token)
    assert given == [("FAY", wrong), ("FAY", PASSWORD)]
