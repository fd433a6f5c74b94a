"""Processes of Python that begin within milliseconds: forked from one that has imported what they need.

To start an interpreter and to import what a command needs takes longer than what most tests ask of it.
``tests/test_forked.py`` holds a forked process to one that was started cold.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, TimeoutExpired
from typing import IO, Any, Final, TextIO

import fork_server
from coatcheck.farm.supervision.launching import _adopt_orphans

COATCHECK: Final = (
    "coatcheck.cli.audit_command",
    "coatcheck.cli.commands",
    "coatcheck.cli.key_commands",
    "coatcheck.cli.serve_commands",
    "coatcheck.cli.session_commands",
    "coatcheck.cli.tls_commands",
    "coatcheck.farm.check",
    "coatcheck.farm.serve",
    "coatcheck.pool.service.operator",
    "coatcheck.pool.service.serve",
    "coatcheck.pool.soap.gateway_serve",
    "coatcheck.service.serve",
    "coatcheck.soap_provider",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)
"""What the command imports."""
READ_AT_START: Final = ("LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON", "TZ")
"""Variables that say something to a process only when it starts: a fork server is started with them."""
MAX_SERVERS: Final = 6
"""For other modules or variables the one that was used longest ago is ended."""
_PID_BYTES: Final = 32


class ForkedProcess:
    """``python ARGUMENTS`` (a script, or -m MODULE) as our child; as :class:`subprocess.Popen`, with text in its pipes.

    ``loaded``: modules that are imported before it is forked. ``stdin``, ``stdout``, ``stderr``: a file, PIPE, DEVNULL,
    STDOUT, or ``None`` for ours.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    def __init__(
        self,
        *arguments: str,
        loaded: tuple[str, ...],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: IO[Any] | int | None = DEVNULL,
        stdout: IO[Any] | int | None = PIPE,
        stderr: IO[Any] | int | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._turn = threading.Lock()
        environment = dict(os.environ if env is None else env)
        wanted = {
            "arguments": arguments,
            "folder": str(cwd or Path.cwd()),
            "umask": _umask(),
            "environment": environment,
            "session": start_new_session,
        }
        with contextlib.ExitStack() as after:
            given = [
                self._descriptor(name, stream, after)
                for name, stream in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr))
            ]
            if stderr == STDOUT:
                given[2] = given[1]
            self.pid = _forked(loaded, environment, wanted, given)

    def poll(self) -> int | None:
        with self._turn:
            return self._status()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; raises :class:`subprocess.TimeoutExpired`. Seconds."""
        with self._turn:
            end = os.pidfd_open(self.pid) if self._status() is None else None
        if end is not None:
            try:
                _wait_for(end, timeout)
            finally:
                os.close(end)
        status = self.poll()
        if status is None:
            raise TimeoutExpired(self.args, timeout or 0.0)
        return status

    def communicate(self, timeout: float) -> str:
        """What it writes to ``stdout`` until it ends; raises :class:`subprocess.TimeoutExpired`. Seconds."""
        until = time.monotonic() + timeout
        said: list[bytes] = []
        while _wait_for(self.stdout.fileno(), until - time.monotonic()):
            piece = os.read(self.stdout.fileno(), 1 << 16)
            if not piece:
                self.stdout.close()
                self.wait(until - time.monotonic())
                return b"".join(said).decode()
            said.append(piece)
        raise TimeoutExpired(self.args, timeout)

    def send_signal(self, number: int) -> None:
        with self._turn:
            if self._status() is None:
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _descriptor(self, name: str, stream: IO[Any] | int | None, after: contextlib.ExitStack) -> int:
        """What it is given, which is closed ``after`` that; of a pipe we keep the other end."""
        if stream is None or stream == STDOUT:
            return ("stdin", "stdout", "stderr").index(name)
        if stream == DEVNULL:
            return after.enter_context(Path(os.devnull).open("r+b", buffering=0)).fileno()
        if stream == PIPE:
            reading, writing = os.pipe()
            its, ours, mode = (reading, writing, "w") if name == "stdin" else (writing, reading, "r")
            after.callback(os.close, its)
            setattr(self, name, os.fdopen(ours, mode))
            return its
        return stream if isinstance(stream, int) else stream.fileno()


class CoatcheckProcess(ForkedProcess):
    """``coatcheck ARGUMENTS``; ``how`` as of any process."""

    def __init__(self, *arguments: str, **how: Any) -> None:
        super().__init__("-m", "coatcheck.cli", *arguments, loaded=COATCHECK, **how)


def run_coatcheck(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """The command from start to end, as :func:`subprocess.run`; killed when the time is over. Seconds."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = CoatcheckProcess(*arguments, cwd=cwd, env=env, stdout=output, stderr=errors)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        for each in (output, errors):
            each.seek(0)
        return subprocess.CompletedProcess(process.args, status, output.read(), errors.read())


class ForkServer:
    """The process from which others are forked: ``fork_server.py``."""

    def __init__(self, loaded: tuple[str, ...], environment: dict[str, str]) -> None:
        self._requests, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, fork_server.MAX_REQUEST_BYTES)
        words = [sys.executable, fork_server.__file__, str(its.fileno()), *loaded]
        root = Path(__file__).parents[1]
        with its:
            self.process = subprocess.Popen(
                words, cwd=root, env=environment, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[its.fileno()]
            )

    def fork(self, request: bytes, descriptors: list[int]) -> int:
        """The process ID of a child of ours. Raises :class:`OSError`: the server has ended."""
        # Only for this moment: other orphans are the system's to collect.
        _adopt_orphans(True)
        try:
            socket.send_fds(self._requests, [request], descriptors)
            answer = self._requests.recv(_PID_BYTES)
        finally:
            _adopt_orphans(False)
        if not answer:
            raise ChildProcessError("the fork server has ended; it wrote why to stderr")
        return int(answer)

    def close(self) -> None:
        self._requests.close()
        self.process.kill()
        self.process.wait()


_servers: dict[Any, ForkServer] = {}
"""By modules and variables; the one that was used last is the last."""
_turn = threading.Lock()


def _forked(
    loaded: tuple[str, ...], environment: dict[str, str], wanted: dict[str, Any], descriptors: list[int]
) -> int:
    request = json.dumps(wanted).encode()
    if len(request) > fork_server.MAX_REQUEST_BYTES:
        raise ValueError(f"{len(request)} bytes of arguments and environment are too many")
    at_start = {name: text for name, text in environment.items() if name.startswith(READ_AT_START)}
    key = (loaded, frozenset(at_start.items()))
    with _turn:
        server = _servers.pop(key, None) or ForkServer(loaded, {"PATH": os.environ.get("PATH", ""), **at_start})
        try:
            pid = server.fork(request, descriptors)
        except BaseException:
            server.close()  # its answer, when it comes, would be taken for the answer to another request
            raise
        _servers[key] = server
        if len(_servers) > MAX_SERVERS:
            _servers.pop(next(iter(_servers))).close()
    return pid


@atexit.register
def _close_all() -> None:
    while _servers:
        _servers.popitem()[1].close()


def _wait_for(descriptor: int, timeout: float | None) -> bool:
    """Whether there is something to read, or an end, within the time. Seconds."""
    waiting = select.poll()  # select(2) knows no descriptor above 1023
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(None if timeout is None else max(0.0, timeout) * 1000))


def _umask() -> int:
    """Read, and not set for a moment: another thread may make a file then."""
    found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 8)
