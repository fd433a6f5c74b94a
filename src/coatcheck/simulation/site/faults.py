"""What can go wrong, in few words: each fault is a guard; it lasts as long as its ``with`` block, and mends itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from coatcheck.simulation.site.director_host import DirectorHost
from coatcheck.simulation.site.session_host import SessionHost
from coatcheck.simulation.site.site import Site
from coatcheck.simulation.site.web_host import WebHost
from coatcheck.simulation.world.wire import Link

Host = WebHost | SessionHost | DirectorHost


class SiteFaults:
    """The faults of one site. Each changes what it must and puts it back; those of one kind may overlap."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._wire = site.world.wire
        self._frozen: dict[str, int] = {}

    @contextmanager
    def web_down(self, index: int, power: bool = False, told: bool = True) -> Iterator[None]:
        """A web server is killed (``power``: with its host, which tells nobody), and started again. ``told``: the
        director, by a supervisor."""
        web = self._site.webs[index]
        if not web.alive:
            yield
            return
        web.kill(silently=power)
        if power:
            self._site.world.hosts.without_power.add(web.name)
        self._site.web_died(web, told and not power)
        try:
            yield
        finally:
            if self._site.world.is_running:
                self._site.restart_web(index)

    @contextmanager
    def director_down(self) -> Iterator[None]:
        """The director is killed, and started again."""
        assert self._site.front is not None
        director = self._site.front.director
        if not director.alive:
            yield
            return
        director.kill()
        try:
            yield
        finally:
            if self._site.world.is_running:
                director.start()

    @contextmanager
    def store_down(self, name: str, comes_back: str = "whole", puts: int = 1, power: bool = False) -> Iterator[None]:
        """A session server is killed, and started again ``whole``, ``empty``, or ``stale``: without its last puts."""
        server = self._site.servers[name]
        if not server.alive:
            yield
            return
        server.kill(silently=power)
        if power:
            self._site.world.hosts.without_power.add(name)
        try:
            yield
        finally:
            if self._site.world.is_running and self._site.servers.get(name) is server and not server.alive:
                if comes_back == "empty":
                    server.restart_empty()
                elif comes_back == "stale":
                    server.restart_stale(puts)
                else:
                    server.restart()

    @contextmanager
    def frozen(self, host: Host) -> Iterator[None]:
        """The process stands still (SIGSTOP); its kernel takes what arrives, and time goes on."""
        machine = host.machine
        if not machine.alive:
            yield
            return
        host.freeze()
        machine.holds += 1
        try:
            yield
        finally:
            machine.holds -= 1
            if not machine.holds:
                host.thaw()

    @contextmanager
    def cut(self, links: Iterable[Link]) -> Iterator[None]:
        """Nothing passes these links, each in one direction."""
        links = tuple(links)
        self._wire.sever(links)
        try:
            yield
        finally:
            self._wire.mend(links)

    @contextmanager
    def slow(self, links: Iterable[Link], bytes_per_s: float) -> Iterator[None]:
        links = tuple(links)
        self._wire.bytes_per_s.update(dict.fromkeys(links, bytes_per_s))
        try:
            yield
        finally:
            for link in links:
                self._wire.bytes_per_s.pop(link, None)

    @contextmanager
    def refuses_writes(self, name: str) -> Iterator[None]:
        server = self._site.servers[name]
        server.read_only = True
        try:
            yield
        finally:
            server.read_only = False

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """It takes no entry that it does not hold already."""
        server = self._site.servers[name]
        server.is_full = True
        try:
            yield
        finally:
            server.is_full = False

    @contextmanager
    def wrong_clock(self, host: WebHost | SessionHost, by_ms: int) -> Iterator[None]:
        """Its wall clock is set wrong, and right again."""
        _set_clock(host, by_ms)
        try:
            yield
        finally:
            _set_clock(host, -by_ms)

    def between(self, one: str, other: str) -> list[Link]:
        return [(one, other), (other, one)]

    def across(self, camp: Iterable[str]) -> list[Link]:
        """All links between a camp of hosts and the rest."""
        inside = set(camp)
        names = self.names()
        return [(one, other) for one in names for other in names if (one in inside) != (other in inside)]

    def names(self) -> list[str]:
        """All hosts of the farm."""
        names = [*self._site.servers, *(web.name for web in self._site.webs)]
        return names if self._site.front is None else [*names, self._site.front.director.name]


def _set_clock(host: WebHost | SessionHost, by_ms: int) -> None:
    if isinstance(host, SessionHost):
        host.jump(by_ms)
    else:
        host.machine.skew_ms += by_ms
