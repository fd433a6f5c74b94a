"""The embedded director: one port before many web servers, within this process and its event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from coatcheck.director.io.client_link import ClientLink
from coatcheck.director.io.health import HealthWatch
from coatcheck.director.io.relay import Entrance, Relay
from coatcheck.director.io.tls_door import TlsDoor
from coatcheck.director.options import DirectorOptions, checked_options
from coatcheck.director.rules.routing import Health, ServerState
from coatcheck.errors import ConfigError

_log: Final = logging.getLogger("coatcheck.director")
_POLL_S: Final = 0.02


class EmbeddedDirector:
    """Routes requests to the web servers that host their sessions (mission B1).

    Runs on the event loop that calls :meth:`start`; several processes may each run one on the same port.
    Raises ConfigError for options that make no sense.
    """

    def __init__(self, options: DirectorOptions) -> None:
        self._options = checked_options(options)
        self._relay: Relay | None = None
        self._server: asyncio.Server | None = None
        self._door: Entrance | None = None
        self._address: tuple[str, int] | None = None
        self._watches: list[HealthWatch] = []
        self._watching: list[asyncio.Task[None]] = []
        self._tick: asyncio.TimerHandle | None = None
        self._draining: set[str] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; useful after binding to port 0."""
        assert self._address is not None, "it was not started"
        return self._address

    async def start(
        self, sock: socket.socket | None = None, entrance: Callable[[Relay], Entrance] | None = None
    ) -> None:
        """Begin to listen and to check the web servers; with an ``entrance``, clients come in there and only there.

        Binds ``host`` and ``port`` with SO_REUSEPORT unless it is given a socket. Raises OSError when the address
        cannot be had. A request that comes before a web server has passed its first check waits for that.
        """
        loop, options = asyncio.get_running_loop(), self._options
        relay = self._relay = Relay(options, loop)
        for state in relay.traffic.servers:
            state.draining = state.name in self._draining
        if entrance is not None:
            self._door = entrance(relay)
            self._door.open()
        elif options.tls is not None:
            listener = _listen(options) if sock is None else sock
            listener.setblocking(False)
            listener.listen(options.backlog)
            self._address = listener.getsockname()[:2]
            self._door = TlsDoor(relay, listener, options.tls)
            self._door.open()
        else:
            where: dict[str, Any] = {"sock": sock}
            if sock is None:
                where = {"host": options.host, "port": options.port, "reuse_port": True}
            self._server = await loop.create_server(lambda: ClientLink(relay), backlog=options.backlog, **where)
            self._address = self._server.sockets[0].getsockname()[:2]
        self._watches = [HealthWatch(relay, pool) for pool in relay.pools]
        relay.nudge = self._nudge
        self._watching = [loop.create_task(watch.run()) for watch in self._watches]
        self._on_tick(relay)

    async def wait_for_first_checks(self) -> None:
        """Wait until each web server has passed or failed a check: as long as ``check_timeout_s`` if one is silent.

        Until then those that were quicker to answer get all new sessions.
        """
        for watch in self._watches:
            await watch.has_looked.wait()

    def drain(self, name: str) -> None:
        """Send a web server no more requests, not even those of its own sessions; what is in flight there ends well.

        WebSockets may go on for ``tunnel_drain_s``. Raises ConfigError for an unknown name.
        """
        self._set_draining(name, draining=True)

    def admit(self, name: str) -> None:
        """Send a drained web server requests again.

        Raises ConfigError for an unknown name.
        """
        self._set_draining(name, draining=False)

    def _set_draining(self, name: str, *, draining: bool) -> None:
        state = self._state(name)
        (self._draining.add if draining else self._draining.discard)(name)
        if self._relay is None or state is None:
            return
        self._relay.traffic.set_draining(state, draining=draining)
        if draining and self._door is not None:
            self._door.draining(state)
        self._relay.flush()

    def server_died(self, name: str) -> None:
        """Whoever keeps the web servers alive says that this one's process has ended.

        What it had is delivered elsewhere, or fails, at once, even if something still holds its connections open.
        Raises ConfigError for an unknown name.
        """
        state = self._state(name)
        if self._relay is not None and state is not None:
            self._relay.traffic.server_died(state)
            self._relay.flush()

    def _state(self, name: str) -> ServerState | None:
        if name not in {server.name for server in self._options.servers}:
            raise ConfigError(f"director: there is no web server {name!r}")
        return (
            next((state for state in self._relay.traffic.servers if state.name == name), None) if self._relay else None
        )

    def status(self) -> dict[str, Any]:
        """The counters since the start, and the state of each web server; all zero before the start."""
        traffic = self._relay.traffic if self._relay is not None else None
        states = traffic.servers if traffic is not None else []
        servers = [
            {
                "name": server.name,
                "address": str(server.door),
                "healthy": state.health is Health.HEALTHY,
                "health": state.health.value,
                "draining": state.draining,
                "in_flight": state.in_flight,
                "requests": state.requests,
                "failures": state.failures,
            }
            for server, state in zip(self._options.servers, states, strict=False)
        ]
        return {
            "requests": traffic.requests if traffic else 0,
            "in_flight": sum(state.in_flight for state in states) + (len(traffic.waiting) if traffic else 0),
            "connections": traffic.admission.connections if traffic else 0,
            "handshakes": len(traffic.handshakes) if traffic else 0,
            "websockets": len(traffic.tunnels) if traffic else 0,
            "resumed_websockets": traffic.resumed_websockets if traffic else 0,
            "addresses": traffic.admission.addresses if traffic else 0,
            "most_of_one_address": traffic.admission.most_of_one_address if traffic else 0,
            "waiting": len(traffic.waiting) if traffic else 0,
            "retries": traffic.retries if traffic else 0,
            "evicted": traffic.evicted if traffic else 0,
            "errors": dict(traffic.errors) if traffic else {},
            "durations": traffic.durations.status() if traffic else {},
            "servers": servers,
            **({} if self._door is None else self._door.status()),
        }

    async def stop(self, grace_s: float) -> None:
        """Accept no more, finish what is in flight, close what is idle; after ``grace_s`` drop what is left."""
        relay, server, door = self._relay, self._server, self._door
        if relay is None:
            return
        self._relay = self._server = self._door = None
        for entrance in (server, door):
            if entrance is not None:
                entrance.close()
        deadline = relay.loop.time() + grace_s
        while relay.traffic.connections or relay.traffic.tunnels:
            # In each round: a handshake that was under way may have ended meanwhile.
            relay.stop()
            if relay.loop.time() >= deadline:
                break
            await asyncio.sleep(_POLL_S)
        relay.close()
        if door is not None:
            door.abort()
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._tick is not None:
            self._tick.cancel()
        # Aborted connections report their end in the loop's next rounds.
        await asyncio.sleep(0)

    def _on_tick(self, relay: Relay) -> None:
        self._tick = relay.loop.call_later(self._options.tick_s, self._on_tick, relay)
        relay.tick(relay.loop.time())

    def _nudge(self, state: ServerState) -> None:
        self._watches[state.index].nudge()


def _listen(options: DirectorOptions) -> socket.socket:
    found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
