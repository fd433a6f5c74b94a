"""The faults that hosts have, besides those of any farm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from coatcheck.simulation.faults import Faults
from coatcheck.simulation.site.site import ShippedFarm
from coatcheck.simulation.world.machine import Machine
from coatcheck.simulation.world.wire import Link


class SiteFaults(Faults):
    """Those of one kind may overlap."""

    _farm: ShippedFarm

    def __init__(self, site: ShippedFarm) -> None:
        super().__init__(site, site.world.wire)

    def _kill(self, host: Any, power: bool) -> None:
        host.kill(silently=power)
        if power:
            self._farm.world.hosts.without_power.add(host.name)

    @contextmanager
    def director_down(self) -> Iterator[None]:
        """The director is killed, and started again."""
        assert self._farm.front is not None
        director = self._farm.front.director
        if not director.alive:
            yield
            return
        director.kill()
        try:
            yield
        finally:
            if not self._farm.is_over:
                director.start()

    @contextmanager
    def frozen(self, host: Any) -> Iterator[None]:
        """The process stands still (SIGSTOP); its kernel takes what arrives, and time goes on."""
        machine: Machine = host.machine
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
    def slow(self, links: Iterable[Link], bytes_per_s: float) -> Iterator[None]:
        links = tuple(links)
        self._farm.world.wire.bytes_per_s.update(dict.fromkeys(links, bytes_per_s))
        try:
            yield
        finally:
            for link in links:
                self._farm.world.wire.bytes_per_s.pop(link, None)

    @contextmanager
    def full(self, name: str) -> Iterator[None]:
        """It takes no entry that it does not hold already."""
        server = self._farm.servers[name]
        server.is_full = True
        try:
            yield
        finally:
            server.is_full = False

    def names(self) -> list[str]:
        return super().names() if self._farm.front is None else [*super().names(), self._farm.front.director.name]
