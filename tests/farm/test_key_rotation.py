"""Two machines' worth of farms share a Redis, browsers come all the time, and the keys are rotated: by the store, by
the file, by the environment. Nobody is logged out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from coatcheck.farm.files.keys import ENV
from coatcheck.farm.files.run_directory import RING_FILE
from coatcheck.tokens.sealed import TOKEN_CHARS
from ports import free_port
from tls.conftest import start_redis

from .farm_process import COUNTER_APP, Farm, eventually

BROWSERS = 4
PAUSE_S = 0.05
ROUNDS_AFTER = 3
"""Answers that each browser must see at the end of a step: with ``rotate_after`` 0 its cookie is new in each."""


class Machine:
    """One of them: a directory, and the farm that runs in it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.arguments = arguments
        directory.mkdir()
        (directory / "counter.py").write_text(COUNTER_APP)
        self.farm: Farm
        self.base = ""
        self._farms: list[Farm] = []

    def start(self, **env: str) -> None:
        standard = ("counter:app", "--port", "0", "--insecure-localhost", "--stop-grace", "5", "--web", "2")
        self.farm = Farm(self.directory, (*standard, "--rotate-after", "0", *self.arguments), env)
        self._farms.append(self.farm)
        self.farm.wait_running()
        self.base = self.farm.base

    def restart(self, **env: str) -> None:
        self.base = ""
        assert self.farm.stop() == 0
        self.start(**env)

    def keys(self, *arguments: str) -> str:
        done = self.farm.run("keys", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        rows: list[dict[str, Any]] = json.loads(self.keys("ls", "--json"))
        return {row["key"]: row["state"] for row in rows}

    @property
    def file(self) -> Path:
        return self.directory / ".coatcheck" / "keys.json"

    def end(self) -> None:
        for farm in self._farms:
            farm.end()


class Crowd:
    """Browsers that ask all the time, now here, now there. Each counts its own clicks, and so does its session."""

    def __init__(self, machines: list[Machine]) -> None:
        self._machines = machines
        self._over = threading.Event()
        self.answers = [0] * BROWSERS
        self.logged_out: list[str] = []
        self._threads = [threading.Thread(target=self._browse, args=(n,), daemon=True) for n in range(BROWSERS)]

    def _browse(self, number: int) -> None:
        dice, count = Random(number), 0
        with httpx.Client(verify=False, trust_env=False, timeout=20.0) as browser:
            while not self._over.is_set():
                base = dice.choice(self._machines).base
                try:
                    answer = browser.get(base + "/") if base else None
                except httpx.HTTPError:
                    answer = None  # a machine that is being restarted: a load balancer would ask the other one
                time.sleep(PAUSE_S)
                if answer is None or answer.status_code != 200:
                    continue
                seen = answer.json()["count"]
                if seen <= count:
                    self.logged_out.append(f"browser {number}: {seen} after {count}, at {base}")
                count = max(seen, count)
                self.answers[number] += 1

    def go_on(self) -> None:
        """Wait until each has seen some answers more."""
        wanted = [answers + ROUNDS_AFTER for answers in self.answers]
        eventually(
            lambda: all(has >= want for has, want in zip(self.answers, wanted, strict=True)), "answers to everybody"
        )
        assert not self.logged_out, self.logged_out

    @contextmanager
    def browsing(self) -> Iterator[Crowd]:
        for thread in self._threads:
            thread.start()
        try:
            self.go_on()
            yield self
            self.go_on()
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(30)
        assert not self.logged_out, self.logged_out


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Callable[..., list[Machine]]]:
    redis: list[subprocess.Popen[bytes]] = []
    made: list[Machine] = []

    def make(*arguments: str) -> list[Machine]:
        port = free_port()
        (tmp_path / "redis").mkdir()
        redis.append(start_redis(port, tmp_path / "redis"))
        url = f"redis://127.0.0.1:{port}"
        made.extend(Machine(tmp_path / name, "--session-server", url, *arguments) for name in ("a", "b"))
        return made

    yield make
    for machine in made:
        machine.end()
    for server in redis:
        server.kill()
        server.wait(60)


def test_a_rotation_by_the_session_servers_logs_nobody_out(machines: Callable[..., list[Machine]]) -> None:
    a, b = machines("--key-ring", "shared")
    root = secrets.token_urlsafe(32)
    a.start(**{ENV: root})
    b.start(**{ENV: root})
    (first,) = a.states()
    assert b.states() == {first: "active"}
    with Crowd([a, b]).browsing() as crowd:
        a.keys("rotate")
        crowd.go_on()
        assert sorted(a.states().values()) == ["active", "retiring"]
        eventually(lambda: b.states() == a.states(), "the other machine's word, at its next round")
        # A machine that dies in between comes back with the keys of the others.
        b.base = ""
        os.kill(b.farm.process.pid, signal.SIGKILL)
        b.farm.process.wait(60)
        left = a.farm.run("keys", "rotate", "--timeout", "60s")
        assert left.returncode == 0, left.stderr
        b.start(**{ENV: root})
        crowd.go_on()
        a.keys("revoke", first, "--yes")
        crowd.go_on()
        assert sorted(a.states().values()) == ["active", "retiring", "revoked"]
        eventually(lambda: b.states() == a.states(), "the other machine's word, at its next round")
    for machine in (a, b):
        kept = (machine.directory / ".coatcheck" / RING_FILE).read_bytes()
        assert root.encode() not in kept


def test_a_rotation_by_the_file_logs_nobody_out(machines: Callable[..., list[Machine]]) -> None:
    a, b = machines()
    a.start()
    b.file.parent.mkdir(mode=0o700)
    shutil.copy(a.file, b.file)
    b.start()
    (first,) = a.states()
    with Crowd([a, b]).browsing() as crowd:
        a.keys("rotate", "--announce")
        assert list(a.states().values()) == ["active", "announced"]
        shutil.copy(a.file, b.file)
        eventually(lambda: b.states() == a.states() and "known to all here" in b.farm.log, "the new key at the other")
        a.keys("rotate")
        crowd.go_on()
        assert list(a.states().values()) == ["retiring", "active"]
        shutil.copy(a.file, b.file)
        eventually(lambda: b.states() == a.states(), "the new key seals at the other")
        crowd.go_on()
        a.keys("revoke", first, "--yes")
        shutil.copy(a.file, b.file)
        eventually(lambda: b.states() == a.states(), "the old key is gone at the other")


def test_a_rotation_by_the_environment_logs_nobody_out(machines: Callable[..., list[Machine]]) -> None:
    a, b = machines()
    old, new = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    for machine in (a, b):
        machine.start(**{ENV: old})
    with Crowd([a, b]).browsing() as crowd:
        for keys in (f"{old},{new}", f"{new},{old}", new):
            for machine in (a, b):
                machine.restart(**{ENV: keys})
                crowd.go_on()


def test_a_server_that_learns_late_asks_before_it_logs_out(machines: Callable[..., list[Machine]]) -> None:
    """The first machine seals with a key of which the other one was not told; its file is there, and nobody looked."""
    a, b = machines()
    a.start()
    b.file.parent.mkdir(mode=0o700)
    shutil.copy(a.file, b.file)
    b.start()
    with httpx.Client(trust_env=False, timeout=20.0) as browser:
        for at in range(1, 4):
            a.keys("rotate")
            assert browser.get(a.base + "/").json()["count"] == 2 * at - 1
            assert len(browser.cookies.get("coatcheck", "")) == TOKEN_CHARS
            shutil.copy(a.file, b.file)
            assert browser.get(b.base + "/").json()["count"] == 2 * at


def test_who_does_not_answer_is_named_and_nobody_seals(machines: Callable[..., list[Machine]]) -> None:
    a, b = machines("--key-ring", "shared", "--unresponsive-after", "300")
    root = secrets.token_urlsafe(32)
    a.start(**{ENV: root})
    b.start(**{ENV: root})
    (first,) = a.states()
    frozen = b.farm.pid("web-2")
    os.kill(frozen, signal.SIGSTOP)
    try:
        refused = a.farm.run("keys", "rotate", "--timeout", "4s")
        assert refused.returncode == 1
        assert "opens, and nobody seals with it yet: " in refused.stderr
        assert a.states()[first] == "active"
        assert sorted(a.states().values()) == ["active", "announced"]
    finally:
        os.kill(frozen, signal.SIGCONT)
    a.keys("rotate")
    assert a.states()[first] == "retiring"
    assert len(a.states()) == 2, "it went on with the same key"
