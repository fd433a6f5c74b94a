"""D8: "Provider side: session types none, stateless and stateful in SOAP headers (session type, username,
password, session token). None: a session per request, closed after the response, anonymous without
credentials. Stateless: stays open, a fresh token with every response, automatic re-login when it was
closed. Stateful: stays open and tied to its server, no automatic re-login, an error tells the client to
log in. The token is an encrypted string of session ID, user credentials and timestamp." """

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from zeep.exceptions import Fault

from pool.soap.provider_process import ProviderProcess

from .upstream_clients import PASSWORD, ZeepCaller, ask


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    started = ProviderProcess("--user", f"*:{PASSWORD}", log=tmp_path_factory.mktemp("provider") / "log")
    yield started
    started.end()


def signed_in(provider: ProviderProcess, session_type: str, user: str) -> str:
    token = ask(provider.url, SessionType=session_type, UsernameToken=user, PasswordText=PASSWORD).token
    assert token is not None
    return token


def test_none_is_a_session_for_each_request_and_anonymous_without_credentials(provider: ProviderProcess) -> None:
    anonymous = [ask(provider.url, SessionType="None"), ask(provider.url)]
    known = ask(provider.url, SessionType="None", UsernameToken="ANN", PasswordText=PASSWORD)
    assert [answer.username for answer in anonymous] == ["anonymous", "anonymous"]
    assert known.username == "ANN"
    assert len({answer.session for answer in [*anonymous, known]}) == 3
    assert [answer.token for answer in [*anonymous, known]] == [None, None, None]
    assert "ANN" not in provider.admin("stats")["sessions_by_user"]


def test_stateless_stays_open_with_a_fresh_token_and_is_logged_in_again(provider: ProviderProcess) -> None:
    tokens = [signed_in(provider, "Stateless", "BOB")]
    sessions = set()
    for _ in range(3):
        answer = ask(provider.url, SessionType="Stateless", SessionToken=tokens[-1])
        assert answer.token is not None
        tokens.append(answer.token)
        sessions.add(answer.session)
    assert len(set(tokens)) == 4 and len(sessions) == 1
    assert provider.admin("kill-sessions?user=BOB")["killed"] == 1
    again = ask(provider.url, SessionType="Stateless", SessionToken=tokens[-1])
    assert again.reason is None and again.username == "BOB" and again.session not in sessions


def test_stateful_is_not_logged_in_again_but_told_to_log_in(provider: ProviderProcess) -> None:
    token = signed_in(provider, "Stateful", "CAT")
    answer = ask(provider.url, SessionType="Stateful", SessionToken=token)
    assert answer.token is not None and answer.token != token
    provider.admin("kill-sessions?user=CAT")
    lost = ask(provider.url, SessionType="Stateful", SessionToken=answer.token)
    assert (lost.reason, lost.token) == ("SessionExpired", None)


def test_stateful_is_tied_to_its_server(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    common = ("--user", f"*:{PASSWORD}", "--key-file", str(key), "--server")
    servers = [ProviderProcess(*common, name, log=tmp_path / name) for name in ("one", "two")]
    try:
        one, two = servers
        stateful, stateless = signed_in(one, "Stateful", "DAN"), signed_in(one, "Stateless", "DAN")
        assert ask(two.url, SessionType="Stateful", SessionToken=stateful).reason == "WrongServer"
        assert ask(one.url, SessionType="Stateful", SessionToken=stateful).username == "DAN"
        assert ask(two.url, SessionType="Stateless", SessionToken=stateless).username == "DAN"
    finally:
        for server in servers:
            server.end()


def test_the_token_is_an_encrypted_string(provider: ProviderProcess) -> None:
    tokens = [signed_in(provider, "Stateless", "EVE") for _ in range(2)]
    assert ask(provider.url, SessionType="Stateless", SessionToken=tokens[0]).username == "EVE", "the provider can"
    assert tokens[0] != tokens[1]
    for token in tokens:
        assert re.fullmatch(r"[A-Za-z0-9_-]{80,}", token)
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        assert b"EVE" not in raw and PASSWORD.encode() not in raw, "nobody can read what it carries"
        flipped = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
        assert ask(provider.url, SessionType="Stateless", SessionToken=flipped).reason == "TokenInvalid"


def test_a_real_soap_client_with_a_pool_uses_each_type(provider: ProviderProcess) -> None:
    for session_type in ("Stateless", "Stateful", "ServerDetermine"):
        caller = ZeepCaller(provider.url, f"FAY-{session_type}", session_type)
        assert len({caller.call().session for _ in range(5)}) == 1
        with caller.sessions.lease(caller.user):
            caller.service.UpdateAccount(name="n", note=session_type, commit=False)
        found = caller.sessions.call(caller.user, caller.service.QueryAccount, "n")
        assert (found["note"], found["committed"]) == (session_type, False)
        provider.admin(f"kill-sessions?user={caller.user}")
        # Whatever was uncommitted is gone; a fault of the account, not of the session.
        with pytest.raises(Fault, match="no account"):
            caller.sessions.call(caller.user, caller.service.QueryAccount, "n")
        expected_logins = 1 if session_type == "Stateless" else 2
        assert caller.pool.stats()[caller.user].logins_total == expected_logins
        caller.close()
