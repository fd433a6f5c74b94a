"""Processes of Python that begin within milliseconds: forked from one that has imported what they need."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from coatcheck.farm.supervision.launching import _adopt_orphans
from fork_template import READY

TEMPLATE: Final = Path(__file__).with_name("fork_template.py")
_PID_BYTES: Final = 32


class Process:
    """A process that was forked: our child, as :class:`subprocess.Popen` shows one."""

    def __init__(self, pid: int, arguments: list[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._arguments = arguments
        self._end = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._end)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises :class:`subprocess.TimeoutExpired`."""
        if self.poll() is None:
            select.select([self._end], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._arguments, timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Template:
    """Starts ``python -m module``, in an environment and a directory, by a fork.

    ``modules``: what is imported beforehand, in ``environment()``. A process whose own environment says something else
    to the interpreter is started by one of its own.
    """

    def __init__(self, module: str, *modules: str, environment: Callable[[], dict[str, str]]) -> None:
        self._module = module
        self._modules = modules
        self._environment = environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._said: dict[str, str] = {}

    def start(
        self,
        *arguments: str,
        directory: Path,
        environment: dict[str, str],
        output: int,
        errors: int,
        entry: int | None = None,
        session: bool = False,
    ) -> Process | subprocess.Popen[bytes]:
        """``output``, ``errors``, ``entry``: descriptors; without the last its input is empty. ``session``: in one of
        its own."""
        with self._lock:
            if self._requests is None:
                self._requests = self._begin(self._environment())
            if _said_to_python(environment) != self._said:
                return subprocess.Popen(
                    [sys.executable, "-m", self._module, *arguments],
                    cwd=directory,
                    env=environment,
                    stdin=subprocess.DEVNULL if entry is None else entry,
                    stdout=output,
                    stderr=errors,
                    start_new_session=session,
                )
            wanted = {
                "module": self._module,
                "arguments": arguments,
                "directory": str(directory),
                "environment": environment,
                "session": session,
                "umask": _umask(),
            }
            _adopt_orphans(True)
            try:
                with Path(os.devnull).open("rb") as nothing:
                    descriptors = [nothing.fileno() if entry is None else entry, output, errors]
                    socket.send_fds(self._requests, [json.dumps(wanted).encode()], descriptors)
                answer = self._requests.recv(_PID_BYTES)
            finally:
                _adopt_orphans(False)
        return Process(int(answer), [self._module, *arguments])

    def run(
        self, *arguments: str, directory: Path, environment: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run`, with what it said as text; killed when the time is over."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self.start(
                *arguments,
                directory=directory,
                environment=environment,
                output=output.fileno(),
                errors=errors.fileno(),
            )
            try:
                code = process.wait(timeout_s)
            finally:
                process.kill()
                process.wait()
            said = [_all_of(each) for each in (output, errors)]
        return subprocess.CompletedProcess([self._module, *arguments], code, *said)

    def _begin(self, environment: dict[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("fork_template.py")),
                    str(theirs.fileno()),
                    *self._modules,
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._said = _said_to_python(environment)
        atexit.register(self._end)
        assert ours.recv(len(READY)) == READY, "the template ended"
        return ours

    def _end(self) -> None:
        assert self._process is not None
        if self._requests is not None:
            self._requests.close()
        self._process.wait()


def _said_to_python(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(("PYTHON", "LD_", "MALLOC_"))}


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")
