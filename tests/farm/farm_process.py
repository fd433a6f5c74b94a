"""A farm as its user starts it: the command, its run directory, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import coatcheck.errors
from coatcheck.farm.files.run_directory import SOCKETS_LINK, RunDirectory
from coatcheck.farm.files.socket_directory import remove_socket_directory
from forked import CoatcheckProcess, run_coatcheck

SOURCE = Path(coatcheck.errors.__file__).parents[1]
EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE_S = 60.0
"""For whatever is waited for: it costs nothing when things go well, and a busy machine is no fault."""

COUNTER_APP = """
import asyncio, os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"], "server": os.environ["COATCHECK_SERVER"]})

async def slow(request):
    print("a slow request has begun", flush=True)
    await asyncio.sleep(float(request.query_params.get("s", "0.5")))
    request.session["slow"] = request.session.get("slow", 0) + 1
    return JSONResponse({"slow": request.session["slow"], "server": os.environ["COATCHECK_SERVER"]})

async def held(request):
    print("a request is held", flush=True)
    while not os.path.exists("release"):
        await asyncio.sleep(0.02)
    return await slow(request)

async def say(request):
    print("hello from the app", request.query_params["words"])
    return JSONResponse({"environment": sorted(os.environ)})

routes = [Route("/slow", slow), Route("/held", held), Route("/say", say)]
app = Starlette(routes=[Route("/", count, methods=["GET", "POST"]), *routes])
not_callable = 3
def make():
    return app
"""


def environment(**more: str) -> dict[str, str]:
    """Ours without settings of a farm, and without the project of our own tests of Django."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COATCHECK_")}
    clean.pop("DJANGO_SETTINGS_MODULE", None)
    return {**clean, "PYTHONPATH": str(SOURCE)} | more


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def memory_of(pid: int) -> bytes:
    """What a process can write to, as it is now."""
    found = bytearray()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if area and "[vvar]" not in line:
                start, end = (int(number, 16) for number in area.groups())
                memory.seek(start)
                found += memory.read(end - start)
    return bytes(found)


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until the condition holds and return its value."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.05)


def sweep(directory: Path) -> None:
    """Remove what killed farms left outside of their run directories, which are somewhere below this one.

    A next start would do so; after a test there is none.
    """
    for link in directory.rglob(SOCKETS_LINK):
        if link.is_symlink() and not RunDirectory(link.parent).is_in_use():
            remove_socket_directory(link)


class Command:
    """``coatcheck`` with its output."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str, timeout_s: float = 2 * DEADLINE_S, **env: str) -> subprocess.CompletedProcess[str]:
        return run_coatcheck(*arguments, cwd=self.directory, env=environment(**env), timeout=timeout_s)

    @contextmanager
    def started(self, *arguments: str) -> Iterator[CoatcheckProcess]:
        """The command in the background; killed if the test did not let it end, and the kernel ends its processes."""
        with (self.directory / "started.log").open("ab") as log:
            process = CoatcheckProcess(
                *arguments, cwd=self.directory, env=environment(), start_new_session=True, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)
            sweep(self.directory)


class Farm(Command):
    """A running ``coatcheck serve``; ``base`` is its address."""

    def __init__(self, directory: Path, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        super().__init__(directory)
        self._log = directory / "farm.log"
        with self._log.open("wb") as log:
            self.process = CoatcheckProcess(
                "serve",
                *arguments,
                cwd=directory,
                env=environment(**env),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.seen: set[int] = set()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def note(self) -> dict[str, Any]:
        """What ``farm.json`` says."""
        try:
            found: dict[str, Any] = json.loads((self.directory / ".coatcheck/farm.json").read_text())
        except (OSError, ValueError):
            return {}
        if found["pid"] == self.process.pid:
            self.seen |= {row["pid"] for row in found["processes"] if row["pid"]}
        return found

    def wait_running(self, deadline_s: float = DEADLINE_S) -> None:
        def running() -> bool:
            assert self.process.poll() is None, f"the farm ended: {self.log}"
            found = self.note()
            # A dead farm's note may lie here still.
            return bool(found.get("pid") == self.process.pid and found["state"] == "running")

        eventually(running, "the start", deadline_s)

    @property
    def base(self) -> str:
        return f"http://{self.note()['address']}"

    def status(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        self.note()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def healthy_status(self) -> dict[str, Any]:
        """The status, once every process has answered (in time, which a busy one need not at the first go)."""

        def healthy() -> dict[str, Any] | None:
            found = self.status()
            rows = found["director"] + found["web_servers"] + found["session_servers"]
            return found if all(row["healthy"] for row in rows) else None

        found: dict[str, Any] = eventually(healthy, "the health of every process")
        return found

    def pid(self, name: str) -> int:
        pid = next(row["pid"] for row in self.note()["processes"] if row["name"] == name)
        assert pid is not None, f"{name} is not running"
        return int(pid)

    def state(self, name: str) -> str:
        return str(next(row["state"] for row in self.note()["processes"] if row["name"] == name))

    def wait_replaced(self, name: str, old: int) -> int:
        def replaced() -> int:
            row = next((r for r in self.note()["processes"] if r["name"] == name), {"pid": None, "state": ""})
            return int(row["pid"]) if row["pid"] not in (None, old) and row["state"] == "ready" else 0

        return int(eventually(replaced, f"the restart of {name}"))

    def stop(self, timeout_s: float = DEADLINE_S) -> int:
        self.note()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """For the fixture: whatever happened, leave nothing."""
        self.note()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        for pid in self.seen:
            if alive(pid) and b"coatcheck.farm.processes.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        sweep(self.directory)
