"""A farm's processes are forked from one that has imported everything, and nothing depends on that one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from .farm_process import SOURCE, Farm, eventually, memory_of

NAMES = ("session-1", "session-2", "web-1", "web-2", "director-1")
SECRET = "postgres://app:a-secret-of-the-app@db/x"
ORPHANAGE = """
import os, subprocess, sys
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def orphan(request):
    child = "import time; time.sleep(60)"
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.DEVNULL)"
    words = f"import subprocess, sys; print({start}.pid)"
    said = subprocess.run([sys.executable, "-c", words], stdout=subprocess.PIPE, check=True).stdout
    return JSONResponse({"orphan": int(said), "arguments": sys.argv, "secret": os.environ.get("DATABASE_URL")})

app = Starlette(routes=[Route("/", orphan)])
"""

LATE = """
import os, sys, time
if "coatcheck.farm.processes.fork_server" in sys.orig_argv and not os.path.exists({mark!r}):
    open({mark!r}, "w").close()
    fork = os.fork

    def late():
        child = fork()
        if child:
            time.sleep(8)
        return child

    os.fork = late
"""


def shown(pid: int) -> str:
    """What ``ps`` shows of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def fork_servers(running: Farm) -> list[int]:
    """The children of the supervisor that are fork servers."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "coatcheck.farm.processes.fork_server" in shown(int(pid))]


def test_each_is_a_child_of_the_supervisor_with_a_name_and_a_session_of_its_own(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    for name in NAMES:
        pid = running.pid(name)
        assert shown(pid).endswith(f" {name}"), "one that was not forked shows its control channel, too"
        assert (parent_of(pid), os.getsid(pid)) == (running.process.pid, pid)
    [server] = fork_servers(running)
    assert os.getsid(server) == server, "a Ctrl-C is the supervisor's"
    assert "started without it" not in running.log
    assert running.stop() == 0
    eventually(lambda: not Path(f"/proc/{server}").exists(), "the end of the fork server")


def test_it_knows_no_secret_and_each_process_only_its_own(farm: Callable[..., Farm]) -> None:
    key = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
    running = farm("--web", "2", COATCHECK_KEYS=key, DATABASE_URL=SECRET, PYTHONPATH=str(SOURCE))
    assert SECRET.encode() in memory_of(running.pid("web-1")), "the app's own"
    [server] = fork_servers(running)
    without = [server, *(running.pid(name) for name in NAMES if not name.startswith("web"))]
    for pid in without:
        held = memory_of(pid)
        assert b"a-secret-of-the-app" not in held
        assert key.encode() not in held
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"a-secret-of-the-app" not in environ
        assert b"COATCHECK_KEYS" not in environ
    # What was started later was not forked from a process that knows more by then.
    old = running.pid("session-1")
    os.kill(old, signal.SIGKILL)
    held = memory_of(running.wait_replaced("session-1", old))
    assert b"a-secret-of-the-app" not in held


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_depends_on_it(farm: Callable[..., Farm], blow: signal.Signals) -> None:
    running = farm("--web", "2")
    [server] = fork_servers(running)
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        assert browser.get("/").json()["count"] == 1
        os.kill(server, blow)
        for count, name in enumerate(("web-1", "web-2", "session-1", "director-1"), 2):
            old = running.pid(name)
            os.kill(old, signal.SIGKILL)
            new = running.wait_replaced(name, old)
            assert parent_of(new) == running.process.pid
            assert browser.get("/").json()["count"] == count
    assert "fork server failed" in running.log
    assert fork_servers(running) != [server], "another one is there by now"
    assert running.stop() == 0
    eventually(lambda: not Path(f"/proc/{server}").exists(), "the end of the fork server")


def test_it_has_the_time_to_start_that_each_process_has(farm: Callable[..., Farm], tmp_path: Path) -> None:
    slow = "import sys, time\nif 'coatcheck.farm.processes.fork_server' in sys.orig_argv:\n    time.sleep(1)\n"
    (tmp_path / "sitecustomize.py").write_text(slow)
    running = farm("--web", "1", PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}")
    assert len(fork_servers(running)) == 1
    assert "fork server failed" not in running.log


def test_one_that_is_forked_too_late_takes_nobodys_place(farm: Callable[..., Farm], tmp_path: Path) -> None:
    """Both would read the control channel of one process, on a machine that is slow enough."""
    (tmp_path / "sitecustomize.py").write_text(LATE.format(mark=str(tmp_path / "late")))
    running = farm("--web", "1", PYTHONPATH=f"{tmp_path}{os.pathsep}{SOURCE}")
    assert "the fork server failed (no answer): session-" in running.log
    names = [shown(int(entry.name)) for entry in Path("/proc").iterdir() if is_of(running, entry)]
    assert sum("process session-server" in name for name in names) == 2, names
    assert httpx.get(running.base, timeout=60).status_code < 500


def is_of(running: Farm, entry: Path) -> bool:
    """Whether what stands in /proc is a process that works in the farm's folder."""
    try:
        return entry.name.isdecimal() and (entry / "cwd").readlink() == running.directory.resolve()
    except OSError:
        return False


def test_the_orphans_of_an_app_are_not_the_supervisors(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "orphanage.py").write_text(ORPHANAGE)
    running = farm("--web", "1", app="orphanage:app", DATABASE_URL=SECRET)
    said = httpx.get(running.base, timeout=60).json()
    try:
        assert parent_of(said["orphan"]) != running.process.pid
    finally:
        os.kill(said["orphan"], signal.SIGKILL)
    assert said["secret"] == SECRET
    assert said["arguments"][-2:] == ["web-server", "web-1"]


def test_by_hand_it_says_that_it_is_not_for_that() -> None:
    command = [sys.executable, "-m", "coatcheck.farm.processes.fork_server"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "started by `coatcheck serve`" in done.stderr
