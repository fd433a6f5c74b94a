"""Commands of coatcheck, and scripts, each in a process of its own that has loaded before it begins.

Half a second of each start is Python reading modules. A process does that once for a test run, and forks for each
command. ``tests/test_warm_command.py`` holds it to those that start cold.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

LOADED = (
    "coatcheck.cli.commands",
    "coatcheck.pool.service.operator",
    "coatcheck.pool.service.serve",
    "coatcheck.pool.soap.gateway_serve",
    "coatcheck.service.serve",
    "coatcheck.soap_provider",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)
POOL = (
    "coatcheck.pool",
    "coatcheck.pool.stores.postgresql",
    "coatcheck.pool.stores.redis",
    "coatcheck.pool.stores.sqlite",
)
"""What a script with a pool loads."""
READ_AT_START = ("LD_", "OPENSSL_", "PYTHON", "TZ")
"""Variables that say something to a process only when it starts: it is forked from one that had the same."""
MAX_REQUEST = 1 << 18
"""Bytes: arguments, and the environment."""


class WarmProcess:
    """``python ARGUMENTS`` (a script, or -m MODULE), as :class:`subprocess.Popen` would start it; ``stdout`` is text.

    ``loaded``: the modules. ``errors``: the file for its standard error; without one it is in ``stdout``.
    """

    def __init__(
        self,
        *arguments: str,
        loaded: tuple[str, ...],
        errors: IO[Any] | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        mask = os.umask(0o077)
        os.umask(mask)
        environment = dict(os.environ if env is None else env)
        given = [arguments, str(cwd or Path.cwd()), mask, environment]
        ours, its_output = os.pipe()
        self._ended, told = os.pipe()
        try:
            read_at_start = {name: text for name, text in environment.items() if name.startswith(READ_AT_START)}
            server = _server(loaded, tuple(sorted(read_at_start.items())))
            files = [its_output, errors.fileno() if errors else its_output, told]
            socket.send_fds(server, [json.dumps(given).encode()], files)
            self.pid = int(server.recv(32))
        finally:
            os.close(its_output)
            os.close(told)
        self.stdout = os.fdopen(ours)

    def poll(self) -> int | None:
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, as Popen says it; raises :class:`subprocess.TimeoutExpired`. Seconds."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        return status

    def communicate(self, timeout: float) -> str:
        """All that it says until it ends; raises :class:`subprocess.TimeoutExpired`. Seconds."""
        until = time.monotonic() + timeout
        said: list[bytes] = []
        while select.select([self.stdout], [], [], max(0, until - time.monotonic()))[0]:
            piece = os.read(self.stdout.fileno(), 1 << 16)
            if not piece:
                self.stdout.close()
                self.wait(max(0, until - time.monotonic()))
                return b"".join(said).decode()
            said.append(piece)
        raise subprocess.TimeoutExpired(self.arguments, timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            self.returncode = int(os.read(self._ended, 32))
            os.close(self._ended)
        return self.returncode


class WarmCommand(WarmProcess):
    """``coatcheck ARGUMENTS``."""

    def __init__(
        self, *arguments: str, errors: IO[Any], cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__("-m", "coatcheck.cli", *arguments, loaded=LOADED, errors=errors, cwd=cwd, env=env)


def run(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """The command from start to end. Seconds."""
    with tempfile.TemporaryFile("w+") as errors:
        command = WarmCommand(*arguments, errors=errors, cwd=cwd, env=env)
        try:
            output = command.communicate(timeout)
        finally:
            command.kill()
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, command.wait(), output, errors.read())


@functools.cache
def _server(loaded: tuple[str, ...], read_at_start: tuple[tuple[str, str], ...]) -> socket.socket:
    """Where to ask for a process. Who answers there ends when this process does."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(READ_AT_START)}
    environment |= dict(read_at_start)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_REQUEST)
    with its:
        words = [sys.executable, __file__, str(its.fileno()), *loaded]
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        _kept.append(subprocess.Popen(words, pass_fds=[its.fileno()], env=environment, **pipes))
    return ours


_kept: list[subprocess.Popen[bytes]] = []


def serve(asked: socket.socket) -> list[Any] | None:
    """Fork for each request: returns it in the new process, and ``None`` when nobody asks any more."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asked, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            _tell_who_has_ended(told)
        if asked not in ready:
            continue
        request, files, _, _ = socket.recv_fds(asked, MAX_REQUEST, 3)
        if not request:
            return None
        output, errors, ended = files
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for each in (*files, *told.values(), reading, writing):
                os.close(each)
            asked.close()
            found: list[Any] = json.loads(request)
            return found
        told[pid] = ended
        os.close(output)
        os.close(errors)
        asked.send(str(pid).encode())


def _tell_who_has_ended(told: dict[int, int]) -> None:
    while told:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        ended = told.pop(pid)
        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(ended)


def main(asked: socket.socket, loaded: list[str]) -> None:
    for name in loaded:
        importlib.import_module(name)
    gc.freeze()
    request = serve(asked)
    if request is None:
        return
    arguments, folder, mask, environment = request
    os.chdir(folder)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-m":
        sys.path[0] = folder
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).parent)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
