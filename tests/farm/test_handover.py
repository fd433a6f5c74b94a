"""A planned stop and a start: sessions are there. Whatever is older than the last stop is never used."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from ports import free_port

from .farm_process import Farm, alive, eventually

BROWSERS = 40
FILES = "*.handover"


class Shoppers:
    """Browsers that keep their cookies, each with a count in its session."""

    def __init__(self, number: int) -> None:
        self._jars = [httpx.Cookies() for _ in range(number)]
        self.counts = [0] * number

    def visit(self, base: str) -> list[int]:
        """One request of each; answers what their sessions counted."""
        found = []
        with httpx.Client(base_url=base, timeout=60) as client:
            for at, jar in enumerate(self._jars):
                client.cookies = jar
                answer = client.get("/")
                answer.raise_for_status()
                self._jars[at] = client.cookies
                found.append(int(answer.json()["count"]))
        self.counts = found
        return found


def kill_everything(running: Farm) -> None:
    """The supervisor and all of its processes, as a power cut would."""
    running.note()
    running.process.kill()
    running.process.wait(60)
    eventually(lambda: not any(alive(pid) for pid in running.seen), "the end of every process")


def handovers(running: Farm) -> list[Path]:
    return sorted((running.directory / ".coatcheck").glob(FILES))


def test_a_stop_and_a_start_log_nobody_out(farm: Callable[..., Farm]) -> None:
    shoppers = Shoppers(BROWSERS)
    running = farm()
    shoppers.visit(running.base)
    for count in (2, 3):
        assert running.stop() == 0
        for path in handovers(running):
            assert path.stat().st_mode & 0o077 == 0
            assert b"coatcheck handover" in path.read_bytes()[:32]
        assert f"session-1: {BROWSERS} sessions are handed over to the next start" in running.log
        running = farm()
        assert f"session-2: took over {BROWSERS} sessions of the last stop" in running.log
        assert handovers(running) == [], "used once"
        assert shoppers.visit(running.base) == [count] * BROWSERS
        rows = running.healthy_status()["session_servers"]
        assert [row["taken_over"] for row in rows] == [BROWSERS] * 2


def test_a_crash_leaves_nothing_and_an_old_handover_is_not_used(farm: Callable[..., Farm], tmp_path: Path) -> None:
    shoppers = Shoppers(3)
    running = farm()
    shoppers.visit(running.base)
    assert running.stop() == 0
    for path in handovers(running):
        shutil.copy(path, tmp_path / path.name)
    running = farm()
    assert shoppers.visit(running.base) == [2] * 3
    kill_everything(running)
    assert handovers(running) == []
    for path in tmp_path.glob(FILES):
        shutil.copy(path, running.directory / ".coatcheck" / path.name)
    running = farm()
    assert running.log.count("not taken over: it was not written at the end of the farm's last run") == 2
    assert handovers(running) == []
    assert shoppers.visit(running.base) == [1] * 3, "as after every crash"


def test_other_session_servers_and_another_number_of_copies(farm: Callable[..., Farm]) -> None:
    shoppers = Shoppers(12)
    running = farm("--session-servers", "3", "--copies", "1")
    shoppers.visit(running.base)
    for at, arguments in enumerate(
        (
            ("--session-servers", "1", "--copies", "1"),
            ("--session-servers", "3", "--copies", "2"),
            ("--session-servers", "2", "--copies", "all"),
        )
    ):
        assert running.stop() == 0
        running = farm(*arguments)
        assert shoppers.visit(running.base) == [at + 2] * 12, arguments


def test_a_start_that_fails_hands_over_again(farm: Callable[..., Farm]) -> None:
    shoppers = Shoppers(3)
    running = farm()
    shoppers.visit(running.base)
    assert running.stop() == 0
    app = running.directory / "counter.py"
    good = app.read_text()
    app.write_text("1 / 0")
    broken = farm(wait=False)
    assert broken.process.wait(60) != 0
    assert "ZeroDivisionError" in broken.log
    app.write_text(good)
    assert shoppers.visit(farm().base) == [2] * 3


@pytest.mark.parametrize("servers", ["outside", "none at a stop"])
def test_without_a_handover_nothing_is_left_and_nothing_old_comes_back(farm: Callable[..., Farm], servers: str) -> None:
    shoppers = Shoppers(2)
    running = farm()
    shoppers.visit(running.base)
    assert running.stop() == 0
    outside = ("--session-server", "sqlite:///sessions.db", "--copies", "1", "--store-timeout", "30")
    running = farm(*(outside if servers == "outside" else ("--handover-timeout", "0")))
    assert "what 2 session servers left at the last stop is not taken over, and removed" in running.log
    assert shoppers.visit(running.base) == [1] * 2
    assert running.stop() == 0
    assert handovers(running) == []
    running = farm(*outside) if servers == "outside" else farm()
    assert shoppers.visit(running.base) == [2 if servers == "outside" else 1] * 2


def test_a_session_server_that_cannot_write_costs_no_more_than_a_crash(farm: Callable[..., Farm]) -> None:
    shoppers = Shoppers(3)
    running = farm("--handover-timeout", "1")
    shoppers.visit(running.base)
    running.note()
    frozen = running.pid("session-1")
    with ExitStack() as thaw:
        thaw.callback(lambda: alive(frozen) and os.kill(frozen, signal.SIGCONT))
        os.kill(frozen, signal.SIGSTOP)
        assert running.stop() == 0
    assert "session-1: its sessions are not handed over: no answer to hand_over within 1 s" in running.log
    running = farm()
    assert shoppers.visit(running.base) == [2] * 3, "the other one had a copy of each"


def test_a_cut_off_file_is_refused_and_the_farm_starts(farm: Callable[..., Farm]) -> None:
    shoppers = Shoppers(3)
    running = farm("--port", str(free_port()))
    shoppers.visit(running.base)
    assert running.stop() == 0
    first, second = handovers(running)
    os.truncate(first, first.stat().st_size - 1)
    with second.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    running = farm()
    assert "session-1: the sessions in session-1.handover are not taken over: it is not whole" in running.log
    assert "session-2: the sessions in session-2.handover are not taken over: it was not written by" in running.log
    assert shoppers.visit(running.base) == [1] * 3
