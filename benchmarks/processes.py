"""Servers as subprocesses on loopback, started and stopped by pid, and the CPU time that they took."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
SERVER_CORE = 0
OTHER_CORE = 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pinned(command: list[str], core: int) -> list[str]:
    """The command bound to one core, where the machine has two and ``taskset``."""
    if shutil.which("taskset") is None or (os.cpu_count() or 1) < 2:
        return command
    return ["taskset", "-c", str(core), *command]


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


class Processes:
    """A context that ends what it started, and only that."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running.values()):  # session servers last
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, command: list[str], port: int, core: int, env: dict[str, str] | None = None) -> int:
        """Start a server and wait until it listens on ``port``; answers its pid. Raises ``RuntimeError``."""
        process = subprocess.Popen(pinned(command, core), env=env or environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
        self._running[name] = process
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process.pid
            time.sleep(0.02)
        raise RuntimeError(f"{name} does not listen on port {port}; exit status {process.poll()}")

    def start_session_server(self, name: str, core: int = OTHER_CORE) -> tuple[int, int]:
        """An embedded session server; answers its port and pid."""
        port = free_port()
        command = [sys.executable, "-m", "coatcheck.session_server"]
        command += ["--name", name, "--listen", f"127.0.0.1:{port}"]
        return port, self.start(name, command, port, core)

    def kill(self, name: str) -> None:
        """SIGKILL, as when the machine loses it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def start_redis(self, name: str, core: int = OTHER_CORE, port: int | None = None) -> tuple[int, int]:
        """A Redis that keeps nothing on disk; answers its port and pid."""
        port = port or free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return port, self.start(name, [*command, "--loglevel", "warning"], port, core)


def cpu_us(pid: int) -> float:
    """CPU time (user and system) that a process has taken so far, in microseconds.

    From ``schedstat``, which counts nanoseconds; where the kernel has none, from ``stat``, which counts ticks.
    """
    tasks = Path(f"/proc/{pid}/task")
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e3
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")
