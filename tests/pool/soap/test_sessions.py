"""Session types over the wire, each behaviour of the provider by hand."""

from __future__ import annotations

import threading
import time

import pytest

from .conftest import StartProvider
from .provider_process import ProviderProcess
from .wire import MEDIA_TYPE, SOAP, SOAP12, call, log_in


def test_none_is_anonymous_without_credentials_and_a_session_for_each_request(provider: ProviderProcess) -> None:
    before = provider.admin("stats")["open_sessions"]
    replies = [call(provider.url), call(provider.url, SessionType="None")]
    assert [reply.results["username"] for reply in replies] == ["anonymous", "anonymous"]
    assert replies[0].results["session"] != replies[1].results["session"]
    assert replies[0].token is None and replies[0].session_type is None
    assert provider.admin("stats")["open_sessions"] == before


def test_none_with_credentials_logs_in_for_one_request(provider: ProviderProcess) -> None:
    before = provider.admin("stats")["open_sessions"]
    reply = call(provider.url, UsernameToken="ANN", PasswordText="word")
    assert reply.results["username"] == "ANN" and reply.token is None
    assert provider.admin("stats")["open_sessions"] == before


@pytest.mark.parametrize("spelling", ["Stateless", "stateless", "STATELESS", " StateLess "])
def test_session_types_are_read_in_any_case(provider: ProviderProcess, spelling: str) -> None:
    first = log_in(provider.url, spelling)
    assert first.session_type == "Stateless"
    call(provider.url, "Logout", SessionToken=first.token)


def test_a_username_may_be_nested(provider: ProviderProcess) -> None:
    from coatcheck.soap_provider import SESSION_NS

    from .wire import envelope, post

    body = envelope(PasswordText="word", UsernameToken="@").replace(
        "@", f'<Username xmlns="{SESSION_NS}">ANN</Username>'
    )
    body = body.replace("&lt;", "<")
    assert post(provider.url, body).results["username"] == "ANN"


def test_stateless_stays_open_with_a_fresh_token_each_time(provider: ProviderProcess) -> None:
    replies = [log_in(provider.url)]
    for _ in range(3):
        replies.append(call(provider.url, SessionType="Stateless", SessionToken=replies[-1].token))
    assert len({reply.token for reply in replies}) == 4
    assert len({reply.results["session"] for reply in replies}) == 1
    assert [reply.results["requests"] for reply in replies] == ["1", "2", "3", "4"]


def test_stateless_is_logged_in_again_when_its_session_was_closed(provider: ProviderProcess) -> None:
    first = log_in(provider.url)
    provider.admin("kill-sessions?user=SADMIN")
    again = call(provider.url, SessionType="Stateless", SessionToken=first.token)
    assert again.reason is None and again.results["username"] == "SADMIN"
    assert again.results["session"] != first.results["session"]


def test_a_session_speaks_both_versions_and_answers_in_the_one_it_was_asked_in(provider: ProviderProcess) -> None:
    replies = [log_in(provider.url, "Stateful", version=SOAP12)]
    for version in (SOAP, SOAP12, SOAP12, SOAP):
        replies.append(call(provider.url, version=version, SessionType="Stateful", SessionToken=replies[-1].token))
        assert (replies[-1].version, replies[-1].content_type) == (version, MEDIA_TYPE[version])
    assert len({reply.results["session"] for reply in replies}) == 1
    missing = [
        call(provider.url, "QueryAccount", {"name": "?"}, version, UsernameToken="SADMIN", PasswordText="secret")
        for version in (SOAP, SOAP12)
    ]
    assert [(each.reason, each.code, each.status) for each in missing] == [
        ("NotFound", "soap:Client", 500),
        ("NotFound", "soap:Sender", 400),
    ]
    provider.admin("kill-sessions?user=SADMIN")
    lost = call(provider.url, version=SOAP12, SessionType="Stateful", SessionToken=replies[-1].token)
    assert (lost.reason, lost.code, lost.token) == ("SessionExpired", "soap:Sender", None)


def test_stateful_keeps_its_state_and_is_not_logged_in_again(provider: ProviderProcess) -> None:
    first = log_in(provider.url, "Stateful")
    draft = {"name": "acme", "note": "draft", "commit": "false"}
    second = call(provider.url, "UpdateAccount", draft, SessionType="Stateful", SessionToken=first.token)
    third = call(provider.url, "QueryAccount", {"name": "acme"}, SessionType="Stateful", SessionToken=second.token)
    assert third.results == {"name": "acme", "note": "draft", "committed": "false"}
    provider.admin("kill-sessions?user=SADMIN")
    lost = call(provider.url, "QueryAccount", {"name": "acme"}, SessionType="Stateful", SessionToken=third.token)
    assert (lost.status, lost.reason, lost.code) == (500, "SessionExpired", "soap:Client")


def test_stateful_is_tied_to_its_server_and_stateless_is_not(start: StartProvider, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    one, two = (start("--user", "SADMIN:secret", "--key-file", str(key), "--server", name) for name in ("one", "two"))
    stateful = log_in(one.url, "Stateful")
    refused = call(two.url, SessionType="Stateful", SessionToken=stateful.token)
    assert refused.reason == "WrongServer"
    assert call(one.url, SessionType="Stateful", SessionToken=stateful.token).results["server"] == "one"
    stateless = log_in(one.url)
    assert call(two.url, SessionType="Stateless", SessionToken=stateless.token).results["server"] == "two"


def test_server_determine_is_stateful_while_changes_are_uncommitted(provider: ProviderProcess) -> None:
    first = log_in(provider.url, "ServerDetermine")
    assert first.session_type == "Stateless"
    draft = {"name": "b", "note": "draft", "commit": "false"}
    second = call(provider.url, "UpdateAccount", draft, SessionType="ServerDetermine", SessionToken=first.token)
    assert second.session_type == "Stateful"
    final = {"name": "c", "note": "final"}
    third = call(provider.url, "UpdateAccount", final, SessionType="ServerDetermine", SessionToken=second.token)
    assert third.session_type == "Stateless"
    found = call(provider.url, "QueryAccount", {"name": "b"}, UsernameToken="SADMIN", PasswordText="secret")
    assert found.results["note"] == "draft" and found.results["committed"] == "true"


def test_one_token_used_twice_at_once_is_busy(provider: ProviderProcess) -> None:
    token = log_in(provider.url).token
    replies = []

    def slow() -> None:
        arguments = {"text": "slow", "delayMs": "5000"}
        replies.append(call(provider.url, "SlowEcho", arguments, SessionType="Stateless", SessionToken=token))

    thread = threading.Thread(target=slow)
    calls = provider.counter("entry.resume")
    thread.start()
    while provider.counter("entry.resume") == calls:
        time.sleep(0.01)
    meanwhile = call(provider.url, SessionType="Stateless", SessionToken=token)
    thread.join()
    assert (meanwhile.reason, meanwhile.code) == ("SessionBusy", "soap:Server")
    assert replies[0].results == {"text": "slow"} and replies[0].token


def test_a_fault_within_a_session_refreshes_the_token_too(provider: ProviderProcess) -> None:
    first = log_in(provider.url)
    missing = call(provider.url, "QueryAccount", {"name": "?"}, SessionType="Stateless", SessionToken=first.token)
    assert missing.reason == "NotFound" and missing.token and missing.token != first.token


def test_none_with_a_token_closes_the_session_after_the_answer(provider: ProviderProcess) -> None:
    first = log_in(provider.url)
    before = provider.admin("stats")["open_sessions"]
    last = call(provider.url, SessionType="None", SessionToken=first.token)
    assert last.results["session"] == first.results["session"] and last.token is None
    assert provider.admin("stats")["open_sessions"] == before - 1


def test_logout_closes_and_may_be_repeated(provider: ProviderProcess) -> None:
    first = log_in(provider.url)
    logins = provider.counter("logins")
    assert [call(provider.url, "Logout", SessionToken=first.token).reason for _ in range(2)] == [None, None]
    assert provider.counter("logins") == logins
    assert call(provider.url, "Logout").reason == "LoginRequired"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"SessionType": "Stateless"}, "LoginRequired"),
        ({"SessionType": "Sticky"}, "BadSessionType"),
        ({"UsernameToken": "SADMIN", "PasswordText": "wrong"}, "LoginFailed"),
        ({"UsernameToken": "NOBODY", "PasswordText": ""}, "LoginFailed"),
        ({"PasswordText": "secret"}, "BadHeader"),
        ({"SessionToken": "AAAA"}, "TokenInvalid"),
        ({"SessionToken": "ä" * 200}, "TokenInvalid"),
        ({"SessionToken": "A" * 5000}, "BadHeader"),
    ],
)
def test_wrong_headers_are_clear_faults(provider: ProviderProcess, headers: dict[str, str], reason: str) -> None:
    assert call(provider.url, **headers).reason == reason


def test_a_token_and_another_users_name_do_not_go_together(provider: ProviderProcess) -> None:
    token = log_in(provider.url).token
    assert call(provider.url, UsernameToken="ANN", PasswordText="word", SessionToken=token).reason == "BadHeader"


def test_tokens_expire_by_age_and_by_the_operator(start: StartProvider) -> None:
    short = start("--user", "SADMIN:secret", "--token-timeout", "1")
    first = log_in(short.url)
    time.sleep(1.2)
    assert call(short.url, SessionType="Stateless", SessionToken=first.token).reason == "TokenExpired"
    second = log_in(short.url)
    short.admin("expire-tokens")
    assert call(short.url, SessionType="Stateless", SessionToken=second.token).reason == "TokenExpired"


def test_single_use_accepts_only_the_newest_token(start: StartProvider) -> None:
    strict = start("--user", "SADMIN:secret", "--single-use")
    first = log_in(strict.url)
    second = call(strict.url, SessionType="Stateless", SessionToken=first.token)
    assert call(strict.url, SessionType="Stateless", SessionToken=first.token).reason == "TokenExpired"
    assert call(strict.url, SessionType="Stateless", SessionToken=second.token).reason is None


def test_idle_sessions_are_closed_and_make_room(start: StartProvider) -> None:
    small = start("--user", "SADMIN:secret", "--idle", "4", "--max-sessions-per-user", "2")
    log_in(small.url)
    stateful = log_in(small.url, "Stateful")
    full = call(small.url, SessionType="Stateless", UsernameToken="SADMIN", PasswordText="secret")
    assert (full.reason, full.code) == ("TooManySessions", "soap:Server")
    time.sleep(4.2)
    assert call(small.url, SessionType="Stateful", SessionToken=stateful.token).reason == "SessionExpired"
    log_in(small.url)
    assert small.admin("stats")["peak_sessions_per_user"] == 2


def test_it_misbehaves_as_told(provider: ProviderProcess) -> None:
    try:
        token = log_in(provider.url).token
        provider.admin("misbehave", {"expire_rate": 1})
        assert call(provider.url, SessionType="Stateless", SessionToken=token).reason == "TokenExpired"
        provider.admin("misbehave", {"expire_rate": 0, "fault_rate": 1})
        assert call(provider.url, SessionType="Stateless", SessionToken=token).reason == "OutOfOrder"
        provider.admin("misbehave", {"fault_rate": 0, "fail_login_rate": 1})
        assert call(provider.url, UsernameToken="SADMIN", PasswordText="secret").reason == "LoginFailed"
        provider.admin("misbehave", {"fail_login_rate": 0, "slow_login_s": 0.5})
        before = time.monotonic()
        log_in(provider.url)
        assert time.monotonic() - before >= 0.5
        provider.admin("misbehave", {"slow_login_s": 0, "kill_rate": 1})
        before_kills = provider.counter("killed")
        call(provider.url, SessionType="Stateless", SessionToken=token)
        assert provider.counter("killed") == before_kills + 1
    finally:
        provider.admin("misbehave", {"kill_rate": 0, "expire_rate": 0, "fault_rate": 0, "fail_login_rate": 0})
