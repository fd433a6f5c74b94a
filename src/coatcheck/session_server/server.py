"""The embedded session server: keeps copies of sessions in memory and speaks RESP.

Run one with ``python -m coatcheck.session_server --listen 127.0.0.1:0 --password-env NAME``; it writes one
line ``listening HOST:PORT`` when it is ready. ``redis-cli`` can look at it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import ConfigError, ForeignPeer
from coatcheck.host_clock import HeldClock
from coatcheck.host_port import is_loopback, parse_host_port
from coatcheck.peers.credentials import check_same_user
from coatcheck.replication.put_rule import is_tombstone, payload_at
from coatcheck.session_server.connection import SessionConnection
from coatcheck.session_server.handover import Clocks, Stamp, take_handover, write_handover
from coatcheck.session_server.state import Items, SessionState
from coatcheck.session_server.table import DEFAULT_MAX_BYTES, DEFAULT_MAX_ENTRIES
from coatcheck.tokens.keyring import SealedBox, sealing_key

MAX_CONNECTIONS: Final = 1024
MAX_STRANGERS: Final = 128
"""Connections that have not shown the password yet; the oldest of them makes room for a new one."""
BACKLOG: Final = 512
CHECK_PERIOD_S: Final = 0.5
SWEEP_PERIOD_S: Final = 0.25
SWEEP_STEPS: Final = 2000
ITEM_SWEEP_STEPS: Final = 200
SWEEP_AGAIN_S: Final = 0.005
COUNT_AT_ONCE: Final = 500
"""Sessions that are counted between two looks at the event loop."""

Refuses = Callable[[asyncio.BaseTransport], str]
"""Why whoever is at the other end of a connection gets nothing; empty if it is who it should be."""


class SessionServer:
    """A session server in this event loop.

    ``port`` 0 takes a free one; :attr:`port` says which. With a password, clients may do nothing before AUTH. When
    ``max_bytes`` or ``max_entries`` are kept, new entries are refused with an error and nothing is evicted; new
    sessions are refused earlier, so that those that exist go on (``table.NEWCOMERS_SHARE``).
    Raises ``OSError`` from :meth:`start` if the address cannot be had. ``sock``: a socket that listens already,
    instead of an address; behind a Unix socket only clients of our own user are served.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        password: str = "",
        tls: ssl.SSLContext | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        max_connections: int = MAX_CONNECTIONS,
        sock: socket.socket | None = None,
        refuses: Refuses | None = None,
        items: Items | None = None,
    ) -> None:
        """``refuses`` says why a client gets no word from us, or no further one; it is asked again and again.
        ``items``: the table of what may be taken once, if it is not this server's alone."""
        self.name = name
        self.host = host
        self.port = port
        self._tls = tls
        self._max_connections = max_connections
        self._sock = sock
        self._refuses = refuses
        self._state = SessionState(name, password, time.monotonic, HeldClock().now_s, max_bytes, max_entries)
        if items is not None:
            self._state.items = items
        self._server: asyncio.Server | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        if self._sock is not None and self._sock.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(
                lambda: SessionConnection(self._state, time.monotonic, self._admit, self._is_foreign),
                sock=self._sock,
                backlog=BACKLOG,
            )
        else:
            where: dict[str, Any] = {"sock": self._sock} if self._sock else {"host": self.host, "port": self.port}
            self._server = await loop.create_server(
                lambda: SessionConnection(self._state, time.monotonic, self._admit, self._is_refused),
                ssl=self._tls,
                backlog=BACKLOG,
                **where,
            )
            self.port = self._server.sockets[0].getsockname()[1]
        self._check()
        self._sweep()

    async def stop(self) -> None:
        """Close every connection and stop listening; entries are forgotten with this object."""
        for timer in self._timers.values():
            timer.cancel()
        if self._server is None:
            return
        self._server.close()
        for client in list(self._state.clients):
            client.abort()
        await self._server.wait_closed()
        self._server = None

    async def hand_over(self, path: Path, run: str, box: SealedBox) -> int:
        """Stop, so that nothing is written any more, and write what is kept into a file for the next start.

        Answers the number of entries; raises ``OSError`` if the file cannot be written. ``run`` names the farm's run.
        """
        await self.stop()
        stamp = Stamp(run, self.name, int(time.time() * 1000))
        rows = self._state.table.hand_over(self._state.now_ms())
        return await asyncio.to_thread(write_handover, path, stamp, rows, box)

    async def take_over(self, path: Path, run: str, box: SealedBox, limit_s: float) -> int:
        """Before :meth:`start`: take the file away and keep what is in it; answers the number of entries.

        Raises :class:`~coatcheck.session_server.handover.HandoverRefused`, also when ``limit_s`` is over:
        nothing is kept then.
        """
        until = time.monotonic() + limit_s
        clocks = Clocks(self._state.now_ms, lambda: int(time.time() * 1000), lambda: time.monotonic() > until)
        taken = await asyncio.to_thread(take_handover, path, run, self._state.table, box, clocks)
        self._state.taken_over += taken
        return taken

    async def sealed_by(self) -> dict[str, int]:
        """How many live sessions each key has sealed, by the key's ID in hex; no payload is opened for that."""
        table, counts, cursor = self._state.table, Counter[str](), 0
        while True:
            cursor, keys = table.scan(cursor, COUNT_AT_ONCE, self._state.now_ms())
            found = [row[0] for key in keys if (row := table.get(key, self._state.now_ms())) is not None]
            counts.update(sealing_key(raw, payload_at(raw)).hex() for raw in found if not is_tombstone(raw))
            if not cursor:
                return dict(counts)
            await asyncio.sleep(0)

    def status(self) -> dict[str, str | int | float]:
        """See :meth:`coatcheck.session_server.state.SessionState.status`."""
        return self._state.status()

    def _admit(self, client: SessionConnection) -> bool:
        clients = self._state.clients
        if len(clients) >= self._max_connections:
            return False
        strangers = [known for known in clients if not known.authenticated]
        if len(strangers) >= MAX_STRANGERS:
            strangers[0].abort()
        return True

    def _is_foreign(self, transport: asyncio.BaseTransport) -> bool:
        try:
            check_same_user(transport.get_extra_info("socket"))
        except ForeignPeer as error:
            self._state.seldom.warning("a client was refused: %s", error)
            return True
        return False

    def _is_refused(self, transport: asyncio.BaseTransport) -> bool:
        why = self._refuses(transport) if self._refuses is not None else ""
        if why:
            self._state.seldom.warning("a client was refused: %s", why, kind="refused")
        return bool(why)

    def descriptors(self) -> list[int]:
        """Of the listening sockets and the connections, as far as they are open."""
        sockets = list(self._server.sockets) if self._server is not None else []
        transports = [client.transport for client in self._state.clients]
        sockets += [transport.get_extra_info("socket") for transport in transports if transport is not None]
        return [number for sock in sockets if sock is not None and (number := sock.fileno()) >= 0]

    def now_ms(self) -> int:
        """This server's clock, which never goes back."""
        return self._state.now_ms()

    def _check(self) -> None:
        now = time.monotonic()
        for client in list(self._state.clients):
            if client.overdue(now) or (client.transport is not None and self._is_refused(client.transport)):
                client.abort()
        self._timers["check"] = asyncio.get_running_loop().call_later(CHECK_PERIOD_S, self._check)

    def _sweep(self) -> None:
        looked = self._state.table.sweep(self._state.now_ms(), SWEEP_STEPS)
        self._state.items.sweep(self._state.now_ms(), ITEM_SWEEP_STEPS)
        delay_s = SWEEP_AGAIN_S if looked >= SWEEP_STEPS else SWEEP_PERIOD_S
        self._timers["sweep"] = asyncio.get_running_loop().call_later(delay_s, self._sweep)


async def serve(server: SessionServer) -> None:
    """Run ``server`` until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await server.start()
    sys.stdout.write(f"listening {server.host}:{server.port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop()


def run_fast(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def main(arguments: list[str] | None = None) -> int:
    """The command; answers its exit status: 0 after a signal, 2 for bad options, 1 if it cannot listen."""
    parser = argparse.ArgumentParser(prog="coatcheck-session-server", description="Keep copies of sessions.")
    parser.add_argument("--name", default="session-server")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--password-env", default="", metavar="NAME", help="environment variable to read")
    parser.add_argument("--max-bytes", type=int, default=DEFAULT_MAX_BYTES)
    parser.add_argument("--max-entries", type=int, default=DEFAULT_MAX_ENTRIES)
    options = parser.parse_args(arguments)
    try:
        host, port = parse_host_port(options.listen, "--listen")
        password = os.environ.get(options.password_env, "") if options.password_env else ""
        if options.password_env and not password:
            raise ConfigError(f"--password-env: the variable {options.password_env} is not set")
        if not password and not is_loopback(host):
            raise ConfigError(f"--listen: {host} can be reached from outside, so --password-env is needed")
        if options.max_bytes <= 0 or options.max_entries <= 0:
            raise ConfigError("--max-bytes, --max-entries: must be above 0")
    except ConfigError as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 2
    bounds = {"max_bytes": options.max_bytes, "max_entries": options.max_entries}
    server = SessionServer(options.name, host, port, password=password, **bounds)
    try:
        run_fast(serve(server))
    except OSError as wrong:
        sys.stderr.write(f"cannot listen on {options.listen}: {wrong.strerror or wrong}\n")
        return 1
    return 0
