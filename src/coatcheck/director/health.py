"""Active health checks: asks each web server again and again whether it takes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from coatcheck.director.options import DirectorOptions
from coatcheck.director.relay import OWN_SHORTAGES, Relay
from coatcheck.director.routing import Check, HealthPolicy, Verdict, checked
from coatcheck.director.upstream import UpstreamPool
from coatcheck.peers.dial import open_streams

_MIN_GAP_S: Final = 0.05
"""Between two checks of one server, however often one is asked for."""
_MAX_STATUS_LINE_BYTES: Final = 256


class HealthWatch:
    """Checks one web server for as long as it runs, and reports what changes."""

    def __init__(
        self, relay: Relay, pool: UpstreamPool, report: Callable[[UpstreamPool, Verdict, Check], None]
    ) -> None:
        self._relay = relay
        self._pool = pool
        self._report = report
        self._policy = HealthPolicy(rise=relay.options.rise, fall=relay.options.fall)
        self._wanted = asyncio.Event()

    def nudge(self) -> None:
        """Ask for a check now: something went wrong with this server."""
        self._wanted.set()

    async def run(self) -> None:
        """Check until cancelled."""
        loop, options = self._relay.loop, self._relay.options
        while True:
            began = loop.time()
            self._wanted.clear()
            check = await self._check(options)
            verdict = checked(self._pool.state, check, self._policy)
            if verdict is not Verdict.UNCHANGED:
                self._report(self._pool, verdict, check)
            left = began + options.check_every_s - loop.time()
            gap = min(_MIN_GAP_S, options.check_every_s)
            await asyncio.sleep(gap)
            try:
                # Not wait_for: in Python 3.11 it may swallow a cancellation that comes together with the event.
                async with asyncio.timeout(max(0.001, left - gap)):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _check(self, options: DirectorOptions) -> Check:
        loop, answers = self._relay.loop, self._pool.answers
        began = loop.time()
        try:
            async with asyncio.timeout(options.check_timeout_s):
                status = await _ask(self._pool, options.health_path)
        except TimeoutError:
            # Our own loop was late, or the server answers others: then its silence to us shows nothing.
            was_late = loop.time() - began > 2 * options.check_timeout_s
            return Check.INCONCLUSIVE if was_late or self._pool.answers != answers else Check.SILENT
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
