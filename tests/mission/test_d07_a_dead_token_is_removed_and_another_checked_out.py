"""D7: "The upstream says that a token is invalid: the client removes it, checks out again, and repeats." """

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coatcheck.pool import NULL_TOKEN, SessionPool
from pool.soap.provider_process import ProviderProcess

from .upstream_clients import CALLERS, PASSWORD, ask


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    started = ProviderProcess("--user", f"*:{PASSWORD}", log=tmp_path_factory.mktemp("provider") / "log")
    yield started
    started.end()


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_a_dead_token_is_removed_and_the_call_repeated(library: str, provider: ProviderProcess) -> None:
    user = f"ANN-{library}"
    caller = CALLERS[library](provider.url, user)
    first = caller.call()
    provider.admin(f"expire-tokens?user={user}")
    second = caller.call()
    assert second.username == user and second.session != first.session
    stats = caller.pool.stats()[user]
    assert (stats.logins_total, stats.drops_total, stats.free, stats.leased) == (2, 1, 1, 0)
    caller.close()


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_all_dead_tokens_are_removed_one_after_the_other(library: str, provider: ProviderProcess) -> None:
    user = f"BOB-{library}"
    caller = CALLERS[library](provider.url, user, per_user=4)
    leases = [caller.pool.lease(user).acquire() for _ in range(4)]
    for lease in leases:
        lease.release()
    provider.admin(f"expire-tokens?user={user}")
    assert caller.call().username == user
    stats = caller.pool.stats()[user]
    assert (stats.logins_total, stats.drops_total, stats.free) == (5, 4, 1)
    caller.close()


def test_the_classic_calls_do_the_same_by_hand(provider: ProviderProcess) -> None:
    pool = SessionPool(expiration_time=900, maximum_usage=500)

    def log_in() -> str:
        answer = ask(provider.url, SessionType="Stateless", UsernameToken="CAT", PasswordText=PASSWORD)
        assert answer.token is not None
        return answer.token

    for _ in range(3):
        pool.check_in("CAT", NULL_TOKEN, log_in(), PASSWORD)
    provider.admin("expire-tokens?user=CAT")
    removed = logins = 0
    while True:
        token = pool.check_out("CAT", PASSWORD)
        if token is NULL_TOKEN:
            pool.check_in("CAT", NULL_TOKEN, log_in())
            logins += 1
            continue
        answer = ask(provider.url, SessionType="Stateless", SessionToken=token.token)
        if answer.reason != "TokenExpired":
            break
        pool.remove("CAT", token)
        removed += 1
    assert (removed, logins, answer.username) == (3, 1, "CAT")
    assert answer.token is not None
    pool.check_in("CAT", token, answer.token)
    again = pool.check_out("CAT", PASSWORD)
    assert ask(provider.url, SessionType="Stateless", SessionToken=again.token).username == "CAT"
