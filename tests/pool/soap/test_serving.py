"""How the provider is started: what it is told wrong, and who reaches its switches."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from coatcheck.pool.soap.versions import SOAP_11
from coatcheck.soap_provider.messages import SoapRequest
from coatcheck.soap_provider.rules import Presented
from forked import run_coatcheck

from .conftest import StartProvider
from .wire import call, log_in


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_coatcheck("soap", "serve", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "nonsense"), "listen"),
        (("--user", "nobody"), "NAME:PASSWORD"),
        (("--user", "a:1", "--user", "a:2"), "twice"),
        (("--users-file", "/nonexistent"), "users-file"),
        (("--key-file", "SHORT"), "key"),
        (("--admin-token-file", "EMPTY"), "empty"),
        (("--idle", "nan"), "--idle"),
        (("--token-timeout", "-1s"), "--token-timeout"),
        (("--server", ""), "server"),
    ],
)
def test_wrong_settings_end_it_with_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    short, empty = tmp_path / "short", tmp_path / "empty"
    short.write_text("short")
    empty.write_text("\n")
    filled = [{"SHORT": str(short), "EMPTY": str(empty)}.get(argument, argument) for argument in arguments]
    ended = run(*filled)
    assert ended.returncode == 2
    assert words in ended.stderr and ended.stderr.startswith("coatcheck: ") and ended.stderr.count("\n") == 1


def test_rates_out_of_range_are_refused() -> None:
    for flag in ("--expire-rate", "--kill-rate", "--fault-rate", "--fail-login-rate"):
        assert run(flag, "1.5").returncode == 2


def test_an_address_that_is_taken_is_told(start: StartProvider) -> None:
    provider = start()
    ended = run("--listen", provider.base.removeprefix("http://"))
    assert ended.returncode == 2 and "cannot listen" in ended.stderr


def test_users_and_wildcards_from_a_file(start: StartProvider, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("# people\nANN:a:b\n*:guest\n")
    provider = start("--users-file", str(users))
    assert log_in(provider.url, username="ANN", password="a:b").token
    assert log_in(provider.url, username="ANYBODY", password="guest").token
    assert call(provider.url, UsernameToken="ANN", PasswordText="guest").reason == "LoginFailed"


def test_switches_beyond_this_machine_need_a_token(start: StartProvider, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("operator\n")
    guarded = start("--admin-token-file", str(token))
    for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "operator"}):
        for method, path in (
            ("GET", "stats"),
            ("POST", "misbehave"),
            ("POST", "kill-sessions"),
            ("POST", "expire-tokens"),
        ):
            assert httpx.request(method, f"{guarded.base}/admin/{path}", headers=shown).status_code == 401
    shown = {"Authorization": "Bearer operator"}
    assert httpx.get(f"{guarded.base}/admin/stats", headers=shown).json()["server"] == "s1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(start: StartProvider, number: signal.Signals) -> None:
    provider = start()
    provider.process.send_signal(number)
    assert provider.process.wait(20) == 0
    assert provider.log.read_text() == ""


def test_no_secret_is_in_a_repr() -> None:
    shown = repr(Presented(username="ANN", password="very-secret"))
    shown += repr(SoapRequest(SOAP_11, {"PasswordText": "very-secret"}, "Echo", {}))
    assert "very-secret" not in shown and "ANN" in shown
