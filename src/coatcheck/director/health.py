"""Active health checks: asks each web server again and again whether it takes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from coatcheck.director.options import DirectorOptions
from coatcheck.director.relay import OWN_SHORTAGES, Relay
from coatcheck.director.rules.routing import Check, HealthPolicy, checked
from coatcheck.director.upstream import UpstreamPool
from coatcheck.peers.dial import open_streams

_MIN_GAP_S: Final = 0.05
"""Between two checks of one server, however often one is asked for."""
_MAX_STATUS_LINE_BYTES: Final = 256
_ASKED_ANEW_AFTER: Final = 20
"""Time-outs after which an unanswered check is given up and asked anew. Until then its answer is still waited for, so
that a server which was blocked is known to be well the moment it is, and a frozen one is not flooded with checks."""


class HealthWatch:
    """Checks one web server for as long as it runs, and reports what changes."""

    def __init__(self, relay: Relay, pool: UpstreamPool, report: Callable[[UpstreamPool, Check], None]) -> None:
        self._relay = relay
        self._pool = pool
        self._report = report
        self._policy = HealthPolicy(rise=relay.options.rise, fall=relay.options.fall)
        self._wanted = asyncio.Event()
        self._asking: asyncio.Task[int | None] | None = None
        self._silences = 0

    def nudge(self) -> None:
        """Ask for a check now: something went wrong with this server."""
        self._wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        loop, options = self._relay.loop, self._relay.options
        try:
            while True:
                began = loop.time()
                self._wanted.clear()
                check = await self._check(options)
                if checked(self._pool.state, check, self._policy):
                    self._report(self._pool, check)
                if self._asking is None:
                    await self._pause(began + options.check_every_s - loop.time(), options)
        finally:
            if self._asking is not None:
                self._asking.cancel()

    async def _pause(self, left_s: float, options: DirectorOptions) -> None:
        gap = min(_MIN_GAP_S, options.check_every_s)
        await asyncio.sleep(gap)
        try:
            # Not wait_for: in Python 3.11 it may swallow a cancellation that comes together with the event.
            async with asyncio.timeout(max(0.001, left_s - gap)):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _check(self, options: DirectorOptions) -> Check:
        """One check, or some more of the wait for one that was not answered in time."""
        loop, answers, began = self._relay.loop, self._pool.answers, self._relay.loop.time()
        if self._asking is None:
            self._silences = 0
            self._asking = loop.create_task(_ask(self._pool, options.health_path))
        asking = self._asking
        await asyncio.wait({asking}, timeout=options.check_timeout_s)
        if not asking.done():
            self._silences += 1
            if self._silences >= _ASKED_ANEW_AFTER:
                asking.cancel()
                self._asking = None
            # Our own loop was late, or the server answers others: then its silence to us shows nothing.
            was_late = loop.time() - began > 2 * options.check_timeout_s
            return Check.INCONCLUSIVE if was_late or self._pool.answers != answers else Check.SILENT
        self._asking = None
        try:
            status = asking.result()
        except BlockingIOError:
            # Its queue of connections is full.
            return Check.SILENT
        except OSError as error:
            # Without a descriptor of our own we could not even ask.
            return Check.INCONCLUSIVE if error.errno in OWN_SHORTAGES else Check.REFUSED
        if status is None:
            return Check.REFUSED
        return Check.PASSED if 200 <= status < 300 else Check.UNFIT


async def _ask(pool: UpstreamPool, path: str) -> int | None:
    """The status of the health resource; ``None``: the connection ended, or what came was no HTTP."""
    server = pool.server
    reader, writer = await open_streams(server.door, limit=_MAX_STATUS_LINE_BYTES)
    try:
        request = f"GET {path} HTTP/1.1\r\nHost: {server.name}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        try:
            line = await reader.readline()
        except ValueError:
            return None
        parts = line.split(b" ", 2)
        if len(parts) < 2 or not line.endswith(b"\n") or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            return None
        return int(parts[1])
    finally:
        writer.close()
