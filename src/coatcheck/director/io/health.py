"""Active health checks: asks each web server again and again whether it takes requests."""

from __future__ import annotations

import asyncio

from coatcheck.director.io.relay import OWN_SHORTAGES, Relay
from coatcheck.director.io.server_link import ServerPool
from coatcheck.director.rules.health_checks import HealthQuestion, NoStatus
from coatcheck.director.rules.routing import Check
from coatcheck.peers.dial import open_streams

_MAX_STATUS_LINE_BYTES = 256


class HealthWatch:
    """Checks one web server for as long as it runs, and reports what was shown."""

    def __init__(self, relay: Relay, pool: ServerPool) -> None:
        self._relay = relay
        self._pool = pool
        self._question = HealthQuestion(relay.options, pool.state)
        self._wanted = asyncio.Event()
        self.has_looked = asyncio.Event()
        """Whether the first check has ended, however it did."""
        self._asking: asyncio.Task[int | NoStatus] | None = None

    def nudge(self) -> None:
        """Ask for a check now: something went wrong with this server."""
        self._wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        try:
            while True:
                self._wanted.clear()
                check = await self._check()
                self._relay.traffic.health_checked(self._pool.state, check)
                self._relay.flush()
                self.has_looked.set()
                if self._asking is None:
                    await self._pause()
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _pause(self) -> None:
        pause_s = self._question.pause_s(self._relay.loop.time())
        gap_s = self._question.gap_s()
        await asyncio.sleep(gap_s)
        try:
            # Not wait_for: in Python 3.11 it may swallow a cancellation that comes together with the event.
            async with asyncio.timeout(max(0.001, pause_s - gap_s)):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _check(self) -> Check:
        """One check, or some more of the wait for one that was not answered in time."""
        loop, options, question = self._relay.loop, self._relay.options, self._question
        if self._asking is None:
            question.asked()
            self._asking = loop.create_task(_ask(self._pool, options.health_path))
        question.waits(loop.time())
        await asyncio.wait({self._asking}, timeout=options.check_timeout_s)
        if self._asking.done():
            check = question.answered(self._asking.result())
            self._asking = None
            return check
        check = question.timed_out(loop.time())
        if question.gives_up:
            self._asking.cancel()
            self._asking = None
        return check


async def _ask(pool: ServerPool, path: str) -> int | NoStatus:
    """The status of the health resource, or why there is none."""
    try:
        return await _status(pool, path)
    except BlockingIOError:
        return NoStatus.QUEUE_FULL
    except OSError as error:
        return NoStatus.OWN_SHORTAGE if error.errno in OWN_SHORTAGES else NoStatus.REFUSED


async def _status(pool: ServerPool, path: str) -> int | NoStatus:
    server = pool.server
    reader, writer = await open_streams(server.door, limit=_MAX_STATUS_LINE_BYTES)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {server.name}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        try:
            line = await reader.readline()
        except ValueError:
            return NoStatus.NO_HTTP
        parts = line.split(b" ", 2)
        if len(parts) < 2 or not line.endswith(b"\n") or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            return NoStatus.NO_HTTP
        return int(parts[1])
    finally:
        writer.close()
