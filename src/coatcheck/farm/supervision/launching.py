"""Starting a process of a farm: forked from the fork server, or by the interpreter's own start."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from coatcheck.farm.control.lines import FORK_SERVER_READY, FORK_WORD
from coatcheck.farm.plan.roles import DirectorRole, Role

FORK_TIMEOUT_S: Final = 5.0
"""A fork takes some milliseconds. A fork server that takes this long is given up, and the process started otherwise."""
MAX_FAILURES: Final = 3
"""After so many in a row no other fork server is tried."""
_PID_BYTES: Final = 32
_PR_SET_CHILD_SUBREAPER: Final = 36


class Launched(Protocol):
    """A process that was started: :class:`asyncio.subprocess.Process`, or :class:`Forked`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """``None`` while it runs; negative: killed by that signal."""
        ...

    @property
    def stdout(self) -> asyncio.StreamReader | None:
        """What it writes to its output and its errors."""
        ...


class Launcher(Protocol):
    """Starts processes of the farm, as our children, each in a session of its own."""

    async def launch(self, role: Role, control: socket.socket, environment: Mapping[str, str]) -> Launched:
        """Start one, whose control channel is ``control``.

        Raises:
            OSError: the system starts no more.
        """
        ...

    async def aclose(self) -> None:
        """Nothing is started any more; what was started goes on."""
        ...


def launcher_of(environment: Mapping[str, str], say: Callable[[str], None], start_timeout_s: float) -> Launcher:
    """The quickest that this system has. ``environment``: what a process that knows no secret is told.

    ``start_timeout_s``: how long a process of the farm may take to start.
    """
    return ForkServer(environment, say, start_timeout_s) if sys.platform == "linux" else Interpreter()


def _arguments(role: Role) -> list[str]:
    """What ``ps`` shows of a process, but for the number of its control channel."""
    kind = str(role.__struct_config__.tag)
    return [sys.executable, "-m", "coatcheck.farm.processes.process", kind, role.name]


def _inherited(role: Role) -> tuple[int, ...]:
    """The descriptors that a process inherits besides its control channel."""
    return (role.listener,) if isinstance(role, DirectorRole) else ()


class Interpreter:
    """Starts an interpreter for each process."""

    async def launch(self, role: Role, control: socket.socket, environment: Mapping[str, str]) -> Launched:
        return await asyncio.create_subprocess_exec(
            *_arguments(role),
            str(control.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(control.fileno(), *_inherited(role)),
            start_new_session=True,
            env=environment,
        )

    async def aclose(self) -> None:
        """Nothing is held."""


class Forked:
    """A forked process, which has become our child."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader) -> None:
        self._pid = pid
        self._stdout = stdout
        self._returncode: int | None = None

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def stdout(self) -> asyncio.StreamReader:
        return self._stdout

    @property
    def returncode(self) -> int | None:
        if self._returncode is None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                self._returncode = os.waitstatus_to_exitcode(status)
        return self._returncode


class ForkServer:
    """Starts processes by forking them from one that has imported everything (Linux).

    Where that does not work, an interpreter is started for the process; ``say`` is told why.
    """

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None], start_timeout_s: float) -> None:
        # It imports what the others would, and on a machine that is slow for it they would be slower, one by one.
        self._start_timeout_s = start_timeout_s
        self._environment = environment
        self._say = say
        self._otherwise = Interpreter()
        self._server: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._failures = 0

    async def launch(self, role: Role, control: socket.socket, environment: Mapping[str, str]) -> Launched:
        async with self._turn:
            if self._failures < MAX_FAILURES:
                try:
                    launched = await self._fork(role, control)
                except (OSError, TimeoutError) as error:
                    self._failures += 1
                    await self._give_up()
                    why = str(error) or "no answer"
                    self._say(f"the fork server failed ({why}): {role.name} is started without it")
                except BaseException:
                    # Its answer, when it comes, would be taken for the answer to another request.
                    await self._give_up()
                    raise
                else:
                    self._failures = 0
                    return launched
        return await self._otherwise.launch(role, control, environment)

    async def aclose(self) -> None:
        async with self._turn:
            await self._give_up()

    async def _fork(self, role: Role, control: socket.socket) -> Forked:
        if self._requests is None:
            async with asyncio.timeout(self._start_timeout_s):
                self._requests = await self._start()
        requests, title = self._requests, " ".join(_arguments(role)).encode()
        reading, writing = os.pipe()
        word, our_word = os.pipe()
        output = io.FileIO(reading)
        try:
            # Only for this moment: the orphans that an app leaves are the system's to collect.
            _adopt_orphans(True)
            try:
                socket.send_fds(requests, [title], [control.fileno(), writing, word, *_inherited(role)])
                async with asyncio.timeout(FORK_TIMEOUT_S):
                    answer = await asyncio.get_running_loop().sock_recv(requests, _PID_BYTES)
            finally:
                _adopt_orphans(False)
                os.close(writing)
                os.close(word)
            if not answer:
                raise ConnectionResetError("it ended")
            forked = await _adopted(int(answer), output)
            os.write(our_word, FORK_WORD)
        except BaseException:
            output.close()
            raise
        finally:
            os.close(our_word)  # one that is forked too late ends by this: another has its control channel by then
        return forked

    async def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            self._server = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "coatcheck.farm.processes.fork_server", str(theirs.fileno()), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=self._environment,
            )
            theirs.close()
            if await asyncio.get_running_loop().sock_recv(ours, len(FORK_SERVER_READY)) != FORK_SERVER_READY:
                raise ConnectionResetError("it ended before it was ready")
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    async def _give_up(self) -> None:
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()


async def _adopted(pid: int, output: io.FileIO) -> Forked:
    """The process as our child; raises :class:`ChildProcessError` if it has become somebody else's."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # noqa: ASYNC222  # it does not wait
    except ChildProcessError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), output)
    return Forked(pid, reader)


def _adopt_orphans(wanted: bool) -> None:
    """Whether this process becomes the parent of its descendants whose own parents end (``prctl(2)``)."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
