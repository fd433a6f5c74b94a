"""Keys are rotated and revoked while the farm serves; nobody is logged out, nothing is restarted."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from coatcheck.errors import TokenRejected
from coatcheck.farm.files.keys import ENV, FarmKeys, load, save
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TOKEN_CHARS

from .farm_process import Command, Farm


def rows(running: Command, *arguments: str) -> list[dict[str, Any]]:
    done = running.run("keys", "ls", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def ring_file(running: Command) -> Path:
    return running.directory / ".coatcheck" / "keys.json"


def sealed_with(running: Command, browser: httpx.Client) -> str:
    """The name of the key that sealed this browser's cookie."""
    token = next(value for value in browser.cookies.values() if len(value) == TOKEN_CHARS)
    keys = load(ring_file(running))
    for key, row in zip(keys.keys, keys.rows(), strict=True):
        box = KeyRing([key]).box("token/anonymous", "farm", os.urandom)
        try:
            box.open(base64.urlsafe_b64decode(token))
        except TokenRejected:
            continue
        return row["key"]
    raise AssertionError("no key of the ring sealed this cookie")


def test_a_rotation_under_way_logs_nobody_out_and_a_revocation_ends_the_old_key(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "3", "--rotate-after", "0")
    pids = {name: running.pid(name) for name in ("web-1", "web-2", "web-3", "session-1", "director-1")}
    with httpx.Client(base_url=running.base) as browser, httpx.Client(base_url=running.base) as away:
        assert browser.get("/").json()["count"] == 1
        assert away.get("/").json()["count"] == 1
        (only,) = rows(running)
        assert (only["state"], only["sessions"]) == ("active", 2)
        assert sealed_with(running, browser) == only["key"]
        refused = running.run("keys", "revoke", only["key"], "--yes")
        assert refused.returncode == 2
        assert refused.stderr == f"coatcheck: keys: {only['key']} is the key that seals; rotate first\n"

        done = running.run("keys", "rotate")
        assert done.returncode == 0, done.stderr
        old, new = rows(running)
        assert done.stdout.startswith(f"{new['key']} seals")
        assert (old["key"], old["state"], new["state"]) == (only["key"], "retiring", "active")
        assert stat.S_IMODE(ring_file(running).stat().st_mode) == 0o600
        assert browser.get("/").json()["count"] == 2
        assert sealed_with(running, browser) == new["key"]
        assert [row["sessions"] for row in rows(running)] == [1, 1]

        done = running.run("keys", "revoke", old["key"], "--yes")
        assert done.returncode == 0, done.stderr
        assert f"revoking {old['key']} ends 1 sessions" in done.stdout
        assert [row["key"] for row in rows(running)] == [new["key"]]
        assert browser.get("/").json()["count"] == 3
        assert away.get("/").json()["count"] == 1, "its cookie can be opened by nobody any more"
        assert {name: running.pid(name) for name in pids} == pids, "nothing was restarted"
        assert running.stop() == 0
        restarted = farm("--web", "3")
        browser.base_url = restarted.base
        assert browser.get("/").json()["count"] == 4, "what is handed over is sealed with the keys of the end"


def test_a_process_that_restarts_meanwhile_has_the_new_keys(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    with httpx.Client(base_url=running.base) as browser:
        assert browser.get("/").json()["count"] == 1
        old = running.pid("web-1")
        os.kill(old, signal.SIGKILL)
        assert running.run("keys", "rotate").returncode == 0
        running.wait_replaced("web-1", old)
        for at, name in enumerate(("web-1", "web-2")):
            # The other one serves alone: it opens what this one sealed.
            assert running.run("drain", name).returncode == 0
            assert browser.get("/").json()["count"] == at + 2
            assert running.run("admit", name).returncode == 0


def test_nobody_seals_with_a_key_that_one_process_could_not_be_told_of(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--unresponsive-after", "300")
    frozen = running.pid("web-2")
    os.kill(frozen, signal.SIGSTOP)
    try:
        done = running.run("keys", "rotate", "--timeout", "3s")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert done.returncode == 1
    assert "opens, and nobody seals with it yet: web-2 could not be told within 3 s" in done.stderr
    first, second = rows(running)
    assert (first["state"], second["state"]) == ("active", "announced")
    done = running.run("keys", "rotate")
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in rows(running)] == ["retiring", "active"], "it went on with the same key"


def test_a_stopped_farm_is_rotated_too(farm: Callable[..., Farm]) -> None:
    running = farm()
    with httpx.Client(base_url=running.base) as browser:
        assert browser.get("/").json()["count"] == 1
        assert running.stop() == 0
        assert running.run("keys", "rotate").returncode == 0
        old, new = rows(running)
        assert (old["state"], new["state"], new["sessions"]) == ("retiring", "active", None)
        running = farm()
        browser.base_url = running.base
        assert browser.get("/").json()["count"] == 2
        assert running.stop() == 0
    assert running.run("keys", "revoke", "00000000", "--yes").returncode == 2
    asked = running.run("keys", "revoke", old["key"])
    assert asked.returncode == 1, "nobody said yes"
    assert len(rows(running)) == 2
    assert running.run("keys", "revoke", old["key"], "--yes").returncode == 0
    assert [row["key"] for row in rows(running)] == [new["key"]]
    assert stat.S_IMODE(ring_file(running).stat().st_mode) == 0o600


def test_keys_of_the_environment_and_of_no_farm_are_told(farm: Callable[..., Farm], command: Command) -> None:
    nowhere = command.run("keys", "rotate", "--run-dir", "nowhere")
    assert nowhere.returncode == 2
    assert "there is no" in nowhere.stderr
    assert not (command.directory / "nowhere").exists()
    fresh = command.run("keys", "new").stdout.strip()
    running = farm(**{ENV: fresh})
    refused = running.run("keys", "rotate")
    assert refused.returncode == 1
    assert "they come from COATCHECK_KEYS" in refused.stderr
    assert rows(running)[0]["state"] == "active"


def test_there_is_an_end_to_the_number_of_keys(tmp_path: Path, command: Command) -> None:
    directory = command.directory / ".coatcheck"
    directory.mkdir(mode=0o700)
    keys = tuple(os.urandom(32) for _ in range(16))
    save(directory / "keys.json", FarmKeys(keys, 15, "password"))
    refused = command.run("keys", "rotate")
    assert refused.returncode == 2
    assert "16 already; revoke an old one first" in refused.stderr
