"""A program in another language at the pool's service: the example in Node, at a real upstream."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..soap.provider_process import ProviderProcess
from .service_process import BEARER, ServiceProcess

EXAMPLE = Path(__file__).parents[3] / "examples" / "pool_service" / "client.mjs"
PASSWORD = "secret"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProviderProcess]:
    """Strict: only the newest token of a session is good, and a user may have few sessions."""
    arguments = ("--user", f"ADA:{PASSWORD}", "--single-use", "--max-sessions-per-user", "4")
    started = ProviderProcess(*arguments, log=tmp_path_factory.mktemp("upstream") / "log")
    yield started
    started.end()


def run(service: ServiceProcess, upstream: ProviderProcess, calls: int, **env: str) -> subprocess.CompletedProcess[str]:
    told = {"POOL": service.url, "BEARER": BEARER, "UPSTREAM": upstream.url, "CALLER": "ADA", "PASSWORD": PASSWORD}
    command = ["node", str(EXAMPLE), str(calls)]
    return subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **told, **env}, capture_output=True, text=True, timeout=90
    )


def told(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def test_a_node_program_shares_the_sessions_of_the_pool(service: ServiceProcess, upstream: ProviderProcess) -> None:
    first = told(run(service, upstream, 24))
    assert (first["calls"], first["users"]) == (24, ["ADA"])
    assert 1 <= first["logins"] <= 2 and first["sessions"] <= 2
    logins = upstream.counter("logins")
    again = told(run(service, upstream, 6))
    assert (again["calls"], again["logins"]) == (6, 0), "another process goes on with the sessions of the first"
    assert upstream.counter("logins") == logins
    assert upstream.counter("fault.SessionBusy") == upstream.counter("fault.TooManySessions") == 0
    stats = service.stats("ADA")
    assert (stats["leased"], stats["logins"]) == (0, 0)

    upstream.admin("expire-tokens")
    expired = upstream.counter("fault.TokenExpired")
    after = told(run(service, upstream, 8))
    assert after["calls"] == 8 and 1 <= after["logins"] <= 2, "refused tokens are dropped, and the calls made again"
    assert upstream.counter("fault.TokenExpired") > expired


def test_a_wrong_password_gets_no_session_of_others(service: ServiceProcess, upstream: ProviderProcess) -> None:
    told(run(service, upstream, 2))
    wrong = run(service, upstream, 1, PASSWORD="wrong")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "LoginFailed" in wrong.stderr
    asked = upstream.counter("login_failures")
    again = run(service, upstream, 1, PASSWORD="wrong")
    assert again.stderr == "login-refused: The upstream refused these credentials for good: login of 'ADA' failed: " + (
        "refused for good\n"
    )
    assert upstream.counter("login_failures") == asked, "the upstream locks nobody out for it"
    stranger = run(service, upstream, 1, BEARER="not-a-bearer-token-of-ours")
    assert stranger.stderr.startswith("unauthorized: ")
    assert told(run(service, upstream, 1))["logins"] == 0
