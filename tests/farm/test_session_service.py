"""The session service that ``serve`` starts: a process of the farm, with the farm's sessions, keys and settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from coatcheck.farm.files.keys import load
from coatcheck.service.callers import credential
from coatcheck.service.client import ServiceProblem, SessionClient
from coatcheck.tokens.keyring import KeyRing
from ports import free_port

from .farm_process import Command, Farm, eventually

CALLERS = '[shop]\nscopes = ["create", "verify", "renew", "update", "close", "events"]\n'


def client_of(running: Farm, port: int) -> SessionClient:
    keys = load(running.directory / ".coatcheck" / "keys.json")
    return SessionClient(f"http://127.0.0.1:{port}", credential("shop", 1, KeyRing(keys.keys, keys.primary), "farm"))


def count(running: Farm, cookie: str) -> int:
    """At the app of the farm."""
    answer = httpx.get(running.base, headers={"Cookie": cookie}, trust_env=False, timeout=60)
    found: int = answer.json()["count"]
    return found


def test_the_farms_app_and_its_service_share_sessions_through_deaths_and_new_keys(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    (tmp_path / "callers.toml").write_text(CALLERS)
    port = free_port()
    running = farm("--web", "2", "--service", f"127.0.0.1:{port}", "--service-callers", "callers.toml")
    with client_of(running, port) as client:
        cookie = client.create("ada", {"count": 4}).cookie
        assert cookie is not None and cookie.startswith("coatcheck-login="), "as the farm's cookies are called"
        assert count(running, cookie) == 5
        seen = client.verify(cookie)
        assert seen is not None and (seen.user, seen.data) == ("ada", {"count": 5})
        os.kill(running.pid("session-service"), signal.SIGKILL)

        def answers() -> bool:
            try:
                return client.verify(cookie) is not None
            except ServiceProblem:
                return False

        eventually(answers, "an answer after its restart")
        assert running.run("keys", "rotate").returncode == 0
        assert count(running, cookie) == 6
        renewed = client.renew(cookie, now=True)
        assert renewed is not None and renewed.cookie is not None, "its credential is of a key that still opens"
        old, new = load(tmp_path / ".coatcheck" / "keys.json").rows()
        assert (old["state"], new["state"]) == ("retiring", "active")
        assert running.run("keys", "revoke", old["key"], "--yes").returncode == 0
        with pytest.raises(ServiceProblem, match="unauthorized"):
            client.verify(renewed.cookie)
    with client_of(running, port) as client:
        again = client.verify(renewed.cookie)
        assert again is not None and again.data == {"count": 6}, "what the new key sealed opens"
        table = running.run("status").stdout
        assert "session service" in table
        client.close(renewed.cookie)
    assert '"session.closed"' in (tmp_path / ".coatcheck" / "audit" / "session-service.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--service", "127.0.0.1:8100"), "needs service_callers"),
        (("--service-callers", "callers.toml"), "needs service"),
        (("--service", "0.0.0.0:8100", "--service-callers", "callers.toml"), "only on this machine"),
        (("--service", "127.0.0.1:0", "--service-callers", "callers.toml"), "must know the port"),
        (("--service", "localhost", "--service-callers", "callers.toml"), "an address such as"),
    ],
)
def test_a_service_that_cannot_be_is_found_before_anything_starts(
    command: Command, arguments: tuple[str, ...], words: str
) -> None:
    done = command.run("check", "counter:app", *arguments)
    assert done.returncode == 2
    assert words in done.stdout
