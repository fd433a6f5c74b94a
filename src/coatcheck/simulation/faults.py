"""What can go wrong, in few words: each fault is a guard; it lasts as long as its ``with`` block, and mends itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from coatcheck.simulation.farm import Farm
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer
from coatcheck.simulation.world.wire import Link

Host = WatchedWebServer | WatchedSessionServer


class Carrier(Protocol):
    """What carries messages or bytes."""

    def sever(self, links: Iterable[Link]) -> None:
        """Nothing passes these."""
        ...

    def mend(self, links: Iterable[Link]) -> None: ...


class Faults:
    """The faults of one farm. Each changes what it must and puts it back, if there is still a farm."""

    def __init__(self, farm: Farm[Any, Any], carrier: Carrier) -> None:
        self._farm = farm
        self._carrier = carrier

    @contextmanager
    def web_down(self, index: int, power: bool = False, told: bool = True) -> Iterator[None]:
        """A web server is killed (``power``: with its host, which tells nobody), and started again. ``told``: the
        director, by a supervisor."""
        web = self._farm.webs[index]
        if not web.alive:
            yield
            return
        self._kill(web, power)
        self._farm.web_died(web, told and not power)
        try:
            yield
        finally:
            if not self._farm.is_over:
                self._farm.restart_web(index)

    @contextmanager
    def store_down(self, name: str, comes_back: str = "whole", puts: int = 1, power: bool = False) -> Iterator[None]:
        """A session server is killed, and started again ``whole``, ``empty``, or ``stale``: without its last puts."""
        server: WatchedSessionServer = self._farm.servers[name]
        if not server.alive:
            yield
            return
        self._kill(server, power)
        try:
            yield
        finally:
            if not self._farm.is_over and name in self._farm.servers and not server.alive:
                if comes_back == "empty":
                    server.restart_empty()
                elif comes_back == "stale":
                    server.restart_stale(puts)
                else:
                    server.restart()

    def _kill(self, host: Host, power: bool) -> None:
        host.kill()

    @contextmanager
    def frozen(self, host: Host) -> Iterator[None]:
        """The process stands still (SIGSTOP); what arrives waits, and time goes on."""
        host.freeze()
        try:
            yield
        finally:
            host.thaw()

    @contextmanager
    def cut(self, links: Iterable[Link]) -> Iterator[None]:
        """Nothing passes these links, each in one direction."""
        links = tuple(links)
        self._carrier.sever(links)
        try:
            yield
        finally:
            self._carrier.mend(links)

    @contextmanager
    def refuses_writes(self, name: str) -> Iterator[None]:
        server = self._farm.servers[name]
        server.read_only = True
        try:
            yield
        finally:
            server.read_only = False

    @contextmanager
    def wrong_clock(self, host: Host, by_ms: int) -> Iterator[None]:
        """Its wall clock is set wrong, and right again."""
        self._set_clock(host, by_ms)
        try:
            yield
        finally:
            if not self._farm.is_over:
                self._set_clock(host, -by_ms)

    def _set_clock(self, host: Host, by_ms: int) -> None:
        if self._farm.trace.on:
            self._farm.ledger.say(f"the clock of {host.name} jumps by {by_ms / 3_600_000:+.1f} h")
        host.jump(by_ms)

    def between(self, one: str, other: str) -> list[Link]:
        return [(one, other), (other, one)]

    def across(self, camp: Iterable[str]) -> list[Link]:
        """All links between a camp of hosts and the rest."""
        inside = set(camp)
        names = self.names()
        return [(one, other) for one in names for other in names if (one in inside) != (other in inside)]

    def names(self) -> list[str]:
        """All hosts of the farm."""
        return [*self._farm.servers, *(web.name for web in self._farm.webs)]
