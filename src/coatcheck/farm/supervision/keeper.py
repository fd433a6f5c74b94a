"""Keeping one process of a farm alive: it is started, pinged, and replaced when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.farm.control.log_lines import LogOrders, read_line
from coatcheck.farm.plan.roles import Role
from coatcheck.farm.settings.farm_settings import LogFormat, LogLevel
from coatcheck.farm.supervision.backoff import Backoff
from coatcheck.farm.supervision.child import Child, StartFailed
from coatcheck.farm.supervision.console import Console
from coatcheck.farm.supervision.launching import Launcher

PING_INTERVAL_S: Final = 1.0
MARK_BYTES: Final = 16

State = Literal["stopped", "starting", "ready", "draining", "drained", "restarting", "dead", "stopping"]


class KeeperOptions(msgspec.Struct, frozen=True):
    """How a process is watched (seconds)."""

    restart: bool
    unresponsive_after_s: float
    start_timeout_s: float
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"


class Keeper:
    """One process by its name, over all its restarts."""

    def __init__(
        self,
        name: str,
        role: Callable[[], Role],
        options: KeeperOptions,
        launcher: Launcher,
        console: Console,
        on_change: Callable[[], None],
        on_death: Callable[[], None] = lambda: None,
        on_ask: Callable[[str], None] = lambda what: None,
    ) -> None:
        """``role`` is asked at each start, so that a restarted director knows who is drained by then.

        ``on_death`` is called when the process has ended, before it is started again; ``on_ask`` with what it asks for.
        """
        self.name = name
        self.state: State = "stopped"
        self.restarts = 0
        self.last_end: str | None = None
        """How it last ended, or why it last could not be started, in words."""
        self._next_try_at: float | None = None
        self._role = role
        self._options = options
        self._launcher = launcher
        self._console = console
        self._on_change = on_change
        self._on_death = on_death
        self._on_ask = on_ask
        self._backoff = Backoff()
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = False

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._child.started_at if self._child is not None else 0.0

    @property
    def next_try_s(self) -> float | None:
        """How long until a dead process is started again; ``None`` if it does not wait for that."""
        return max(0.0, self._next_try_at - time.monotonic()) if self._next_try_at is not None else None

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change()

    def mark_draining(self) -> None:
        """It still works, but gets no new requests."""
        self._become("draining")

    def mark_ready(self) -> None:
        """Draining was called off."""
        self._become("ready")

    async def start(self) -> None:
        """Start the process, and keep it alive once it was ready for the first time.

        Raises:
            StartFailed: it did not become ready; nothing is left running.
        """
        self._wanted = True
        self._backoff = Backoff()
        try:
            child = await self._launch()
        except (StartFailed, asyncio.CancelledError):
            self._wanted = False
            self._become("stopped")
            raise
        self._task = asyncio.create_task(self._keep(child), name=f"keep {self.name}")

    async def _launch(self) -> Child:
        self._become("starting")
        options = self._options
        # A new one each time: whoever has read the log of this process before cannot know it.
        mark = secrets.token_hex(MARK_BYTES) if options.log_format == "json" else ""
        child = Child(
            self._role(),
            self._launcher,
            lambda line: self._log(line, mark),
            self._console.warn,
            LogOrders(options.log_level, mark),
            self._on_ask,
        )
        try:
            await child.start()
            self._child = child
            self._on_change()
            await child.wait_ready(self._options.start_timeout_s)
        except BaseException as error:
            await child.discard()
            self._child = None
            if isinstance(error, OSError):
                raise StartFailed(f"cannot be started: {error.strerror}") from error
            raise
        self._become("ready")
        return child

    def _log(self, line: str, mark: str) -> None:
        printed, record = read_line(line, mark)
        if printed or record is None:
            self._console.line(self.name, printed)
        if record is not None:
            self._console.record(self.name, record)

    async def _keep(self, child: Child) -> None:
        while True:
            watcher = asyncio.create_task(self._watch(child))
            await child.wait_end()
            watcher.cancel()
            self._child = None
            self._on_death()
            if not self._wanted:
                return
            self.last_end = child.end
            self._console.warn(f"{self.name} (pid {child.pid}) {child.end}")
            if not self._options.restart:
                self._become("dead")
                return
            restarted = await self._restart(time.monotonic() - child.started_at)
            if restarted is None:
                return
            child = restarted

    async def _restart(self, lived_s: float) -> Child | None:
        while self._wanted:
            self._become("restarting")
            delay_s = self._backoff.delay_s(lived_s, random.random())
            self._next_try_at = time.monotonic() + delay_s
            try:
                await asyncio.sleep(delay_s)
            finally:
                self._next_try_at = None
            try:
                child = await self._launch()
            except StartFailed as failure:
                self.last_end = str(failure)
                self._console.warn(f"{self.name} cannot be restarted: {failure}")
                lived_s = 0.0
            else:
                self.restarts += 1
                self._console.say(f"{self.name} is back (pid {child.pid}) after {delay_s:.2f} s and its start")
                return child
        return None

    async def _watch(self, child: Child) -> None:
        """Kill a process that answers no ping: stopped, or busy without end."""
        limit_s = self._options.unresponsive_after_s
        answered_at = time.monotonic()
        silent = 0
        while True:
            try:
                await child.call("ping", limit_s / 2)
                answered_at, silent = time.monotonic(), 0
            except ControlError:
                # Two in a row: one alone may mean that it was the supervisor who slept.
                silent += 1
                if silent >= 2 and time.monotonic() - answered_at >= limit_s:
                    self._console.warn(f"{self.name} (pid {child.pid}) answers nothing for {limit_s:g} s: killed")
                    child.kill()
                    return
            await asyncio.sleep(min(PING_INTERVAL_S, limit_s / 4) if not silent else 0.05)

    async def call(self, operation: str, timeout_s: float, **arguments: Any) -> Message:
        """Ask the process something.

        Raises:
            ControlError: it is not running, is late, or refused.
        """
        if self._child is None:
            raise ControlError(f"{self.name} is {self.state}")
        return await self._child.call(operation, timeout_s, **arguments)

    async def stop(self, grace_s: float, final: State = "stopped") -> None:
        """Stop the process and keep it stopped; after ``grace_s`` it is killed."""
        self._wanted = False
        self._become("stopping")
        if self._child is not None and self._task is not None:
            await self._child.stop(grace_s)
        elif self._child is not None:
            self.kill()
        if self._task is not None:
            if self._child is None:
                # It waits for its next try, or is being started.
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._child = None
        self._become(final)

    def kill(self) -> None:
        """End the process at once, and do not restart it."""
        self._wanted = False
        if self._child is not None:
            self._child.kill()
