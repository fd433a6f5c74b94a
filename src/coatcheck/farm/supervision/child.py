"""One running process of a farm, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.farm.control.channel import Peer
from coatcheck.farm.control.lines import ControlError, Message, encode
from coatcheck.farm.control.log_lines import MAX_LINE_BYTES, LogOrders
from coatcheck.farm.plan.roles import Role, WebServerRole
from coatcheck.farm.supervision.launching import Launched, Launcher

LOG_DRAIN_S: Final = 0.5
EXIT_CODE_POLL_S: Final = 0.005


class StartFailed(CoatcheckError):
    """A process did not become ready. ``config``: the user can mend it, and a restart cannot."""

    def __init__(self, reason: str, config: bool = False) -> None:
        super().__init__(reason)
        self.config = config


_OWN_PREFIX: Final = "COATCHECK_"
_FOR_PYTHON: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TZDIR|TMPDIR|VIRTUAL_ENV|PYTHON.*|LD_.*|DYLD_.*|SSL_CERT_.*|OPENSSL_.*|"
    r"MALLOC_.*|COVERAGE_.*|SYSTEMROOT"
)
"""What an interpreter, its loader and its libraries look at; none of it is a secret."""


def environment_of(role: Role, ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of the farm: what it must know is told to it on the control channel.

    None of our own variables is passed on: they may hold the key ring, and passwords in the URLs of session servers,
    which the app's own subprocesses would inherit in their turn. A web server gets the rest, for the app; a process
    that runs no app gets nothing that may be the app's secret.
    """
    if isinstance(role, WebServerRole):
        inherited = {name: value for name, value in ours.items() if not name.startswith(_OWN_PREFIX)}
        return inherited | {"PYTHONUNBUFFERED": "1"}
    return environment_of_python(ours)


def environment_of_python(ours: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that knows nothing but where Python and its libraries are."""
    inherited = {name: value for name, value in ours.items() if _FOR_PYTHON.fullmatch(name)}
    return inherited | {"PYTHONUNBUFFERED": "1"}


async def _death(pid: int) -> None:
    """Wait until the kernel says that a process has ended; at once if it is collected already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


class Child:
    """A process from its start to its end. It leads a group of its own: a Ctrl-C reaches only its supervisor."""

    def __init__(
        self,
        role: Role,
        launcher: Launcher,
        log: Callable[[str], None],
        warn: Callable[[str], None],
        log_orders: LogOrders,
        asks: Callable[[str], None] = lambda what: None,
    ) -> None:
        """``launcher`` starts it; ``asks`` is called with what the process wants to be told."""
        self.role = role
        self._launcher = launcher
        self._asks = asks
        self.started_at = time.monotonic()
        self._log = log
        self._log_orders = log_orders
        self._warn = warn
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process: Launched | None = None
        self._logger: asyncio.Task[None] | None = None
        self._failure: StartFailed | None = None
        self.peer: Peer | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process and send it its orders; :meth:`wait_ready` tells how it went."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = environment_of(self.role, os.environ)
        try:
            self._process = await self._launcher.launch(self.role, theirs, environment)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(True)
        ours.settimeout(1.0)
        order = {
            "role": msgspec.to_builtins(self.role),
            "parent": os.getpid(),
            "environment": environment,
            "log": msgspec.to_builtins(self._log_orders),
        }
        ours.sendall(encode(order))
        ours.setblocking(False)
        self._logger = asyncio.create_task(self._read_log())
        self.peer = Peer(ours, self._on_event)
        await self.peer.open()

    def _on_event(self, message: Message) -> None:
        event = message.get("event")
        if event == "ready" and not self._ready.done():
            self._ready.set_result(None)
        elif event == "failed":
            self._failure = StartFailed(str(message.get("reason")), bool(message.get("config")))
        elif event == "warning":
            self._warn(str(message.get("text")))
        elif event == "asks":
            self._asks(str(message.get("for")))

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the process says that it does its work.

        Raises:
            StartFailed: it said why it cannot, ended, or was too late.
        """
        assert self._process is not None
        ended: asyncio.Future[None] = asyncio.ensure_future(self._exit())
        try:
            both: list[asyncio.Future[Any]] = [self._ready, ended]
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._ready.done():
            return
        if self._process.returncode is None:
            self.kill()
            await self._exit()
            raise StartFailed(f"was not ready within {timeout_s:g} s")
        await self._finish_reading()
        raise self._failure or StartFailed(f"{self.end} before it was ready; its output is above")

    async def _exit(self) -> None:
        """Wait for the process itself. Not asyncio's ``wait``: that one also waits for the end of its output, which a
        child of the process, its heir, may hold open for as long as it likes."""
        assert self._process is not None
        if sys.platform == "linux":
            await _death(self._process.pid)
        # Whoever collects the exit code tells us in a moment; asyncio's own event for it comes after the output's end.
        while self._process.returncode is None:  # noqa: ASYNC110
            await asyncio.sleep(EXIT_CODE_POLL_S)

    async def wait_end(self) -> None:
        """Wait until the process has ended and its last words are logged."""
        assert self._process is not None
        await self._exit()
        await self._finish_reading()

    @property
    def end(self) -> str:
        """How the process ended, in words."""
        code = self._process.returncode if self._process is not None else None
        if code is None:
            return "is running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def _finish_reading(self) -> None:
        if self.peer is not None:
            # What was written before the end is still in the socket: let it arrive.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.peer.closed.wait(), LOG_DRAIN_S)
            await self.peer.aclose()
        if self._logger is not None:
            # Something that the app started may hold the pipe open for ever.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._logger, LOG_DRAIN_S)

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._log(line[:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r"))
            if len(rest) > MAX_LINE_BYTES:
                self._log(rest.decode(errors="replace"))
                rest = b""
        if rest:
            self._log(rest.decode(errors="replace"))

    async def call(self, operation: str, timeout_s: float, **arguments: Any) -> Message:
        """Ask the process something.

        Raises:
            ControlError: gone, late, or refused.
        """
        if self.peer is None:
            raise ControlError("the process is not running")
        return await self.peer.call(operation, timeout_s, **arguments)

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def discard(self) -> None:
        """Kill a process that did not become ready, and wait for its end: an unreaped one outlives the event loop."""
        if self._process is not None:
            self.kill()
            await self.wait_end()

    async def stop(self, grace_s: float) -> None:
        """Ask it to finish; kill it when the grace is over."""
        try:
            await self.call("stop", grace_s + 1)
            async with asyncio.timeout(grace_s + 1):
                await self.wait_end()
        except (ControlError, TimeoutError):
            self.kill()
        await self.wait_end()
