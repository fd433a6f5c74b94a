"""D1: "A client application checks a token out of a pool for a user (with the user's credentials) and calls
the upstream with it: no new session is set up." """

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
def test_each_user_has_sessions_of_its_own(library: str, provider: ProviderProcess) -> None:
    callers = [CALLERS[library](provider.url, f"{name}-{library}") for name in ("CAT", "DAN")]
    for caller, name in zip(callers, ("CAT", "DAN"), strict=True):
        assert {caller.call().username for _ in range(3)} == {f"{name}-{library}"}
        assert caller.pool.stats()[f"{name}-{library}"].free == 1
        caller.close()
