"""Processes that die or hang are replaced, at their address, with bounded patience."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable

import httpx

from coatcheck.farm.supervision.backoff import Backoff

from .farm_process import Farm, eventually


def test_killed_processes_of_every_role_come_back(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    before = running.status()
    with httpx.Client(base_url=running.base) as browser:
        assert browser.get("/").json()["count"] == 1
        for name in ("web-1", "session-1", "director-1", "web-2"):
            old = running.pid(name)
            os.kill(old, signal.SIGKILL)
            running.wait_replaced(name, old)
        count = eventually(lambda: _get(browser), "an answer")
    assert count == 2
    after = running.healthy_status()
    assert after["restarts"] == 4
    for group in ("director", "web_servers", "session_servers"):
        assert [row["address"] for row in after[group]] == [row["address"] for row in before[group]]
    assert "web-1 (pid" in running.log
    assert "was killed by SIGKILL" in running.log


def _get(browser: httpx.Client) -> int:
    try:
        return int(browser.get("/").json()["count"])
    except httpx.HTTPError:
        # The director that held our connection was killed.
        return 0


def test_a_process_that_answers_no_ping_is_replaced(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--unresponsive-after", "1.5")
    old = running.pid("web-1")
    os.kill(old, signal.SIGSTOP)
    running.wait_replaced("web-1", old)
    assert "web-1 (pid" in running.log
    assert "answers nothing for 1.5 s: killed" in running.log


def test_no_restart_leaves_it_dead(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--no-restart")
    os.kill(running.pid("web-1"), signal.SIGKILL)
    eventually(lambda: running.state("web-1") == "dead", "the death")
    time.sleep(1)
    row = next(row for row in running.status()["web_servers"] if row["name"] == "web-1")
    assert (row["healthy"], row["state"], row["pid"], row["restarts"]) == (False, "dead", None, 0)
    with httpx.Client(base_url=running.base) as browser:
        assert [browser.get("/").status_code for _ in range(5)] == [200] * 5
    assert running.run("admit", "web-1").returncode == 0
    assert running.healthy_status()["web_servers"][0]["name"] == "web-1"


def test_back_off_grows_to_a_bound_and_forgets() -> None:
    backoff = Backoff(first_s=0.1, most_s=2.0, healthy_after_s=10.0)
    delays = [backoff.delay_s(lived_s=0.0, jitter=0.0) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]
    assert backoff.delay_s(lived_s=0.0, jitter=1.0) == 1.0
    assert backoff.delay_s(lived_s=60.0, jitter=0.0) == 0.0, "at once"
    assert backoff.delay_s(lived_s=0.0, jitter=0.0) == 0.1, "and the count starts again"


def test_a_supervisor_that_slept_blames_nobody(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--unresponsive-after", "3")
    os.kill(running.process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(running.process.pid, signal.SIGCONT)
    assert running.healthy_status()["restarts"] == 0, "everybody was asked again meanwhile"
    time.sleep(1)
    assert running.status()["restarts"] == 0


def test_an_app_broken_on_disk_is_tried_again_until_it_is_mended(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    app = running.directory / "counter.py"
    good = app.read_text()
    app.write_text("1 / 0")
    os.kill(running.pid("web-1"), signal.SIGKILL)
    eventually(lambda: running.log.count("web-1 cannot be restarted: app: importing") >= 2, "the second try")
    assert httpx.get(running.base).status_code == 200
    row = next(row for row in running.status()["web_servers"] if row["name"] == "web-1")
    assert "app: importing 'counter' failed: ZeroDivisionError" in row["last_end"]
    assert "web-1: app: importing 'counter' failed" in running.run("status").stdout
    app.write_text(good)
    eventually(lambda: running.state("web-1") == "ready", "the return")
    assert running.status()["restarts"] == 1


def test_a_full_disk_costs_the_note_and_no_process(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    supervisor = running.process.pid
    _, most = resource.prlimit(supervisor, resource.RLIMIT_FSIZE)
    # Every write to a file fails from here on, as on a full disk.
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (0, most))
    old = running.pid("web-1")
    os.kill(old, signal.SIGKILL)

    def is_back() -> bool:
        row = next(row for row in running.status()["web_servers"] if row["name"] == "web-1")
        return bool(row["restarts"] == 1 and row["healthy"])

    eventually(is_back, "the restart")
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (most, most))
    os.kill(running.pid("web-2"), signal.SIGKILL)
    assert running.wait_replaced("web-1", old)
    assert running.stop() == 0


def test_a_deleted_run_directory_costs_the_note_and_no_process(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    base, old = running.base, running.pid("web-1")
    shutil.rmtree(running.directory / ".coatcheck")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: "web-1 is back" in running.log, "the restart")
    assert httpx.get(base).status_code == 200
    assert running.log.count("farm.json cannot be written") == 1
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.process.wait(30) == 0
    assert "Traceback" not in running.log
