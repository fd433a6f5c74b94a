"""Faults of the bare farm, and when they strike: dice for all of it are thrown as it goes."""

from __future__ import annotations

from random import Random
from typing import Final

from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.faults import Faults, Host
from coatcheck.simulation.scenario import Damage
from coatcheck.simulation.weather import Weather

WATCH_S: Final = 0.15
"""The heart-beat of a web server runs for so long before it is frozen."""
INSTEAD: Final = {"full store": ("read-only store",), "web dies": ("kill web",), "slow link": (), "power store": ()}
"""What befalls bare processes instead of what needs hosts."""


class BareFaults(Faults):
    """Connections are an idea here: who loses one is told."""

    _farm: BareFarm

    def __init__(self, farm: BareFarm) -> None:
        super().__init__(farm, farm.network)

    def _kill(self, host: Host, power: bool) -> None:
        host.kill()
        if isinstance(host, ModelSessionServer):
            network = self._farm.network
            for web in self._farm.webs:
                if host.name in web.servers and (host.name, web.name) not in network.cut:
                    web.after(network.LATENCY_S, web.disconnected, host.name)


class BareWeather(Weather):
    """Does damage to a bare farm, and mends it again."""

    _farm: BareFarm

    def __init__(self, farm: BareFarm) -> None:
        super().__init__(farm, BareFaults(farm))

    def plan(self) -> None:
        scenario, dice, after = self._farm.scenario, self._farm.dice, self._farm.schedule.after
        kinds = self.kinds()
        for _ in range(scenario.faults):
            at, kind = dice.random() * self.span_s(), dice.choice(kinds)
            after(at, self._strike, kind, dice, kind)
        if scenario.thief:
            after(dice.random() * self.span_s(), self._farm.steal)
        if scenario.faultless and dice.random() < 0.3:
            after(dice.random() * self.span_s(), self._strike, "close", dice, "close")

    def _kinds_of(self, damage: Damage) -> tuple[str, ...]:
        kinds = super()._kinds_of("narrow" if damage == "door" else damage)  # there is no director
        return tuple(one for kind in kinds for one in INSTEAD.get(kind, (kind,)))

    def _freeze_web(self, dice: Random, web: int, store: str, length: float) -> None:
        self._farm.webs[web].watch_for_stalls()
        self._farm.schedule.after(WATCH_S, self._freeze_watched, web, length)

    def _freeze_watched(self, index: int, length: float) -> None:
        web = self._farm.webs[index]
        if not self._stopped and web.alive and web.is_watched:
            self._hold(self._faults.frozen(web), length)

    def _mend(self) -> None:
        """In a fixed order, whatever began first."""
        farm = self._farm
        for server in farm.servers.values():
            if not server.alive:
                server.restart()
            server.thaw()
            server.read_only = False
        self._release(self._wrong)
        for index, web in enumerate(farm.webs):
            web.thaw()
            farm.restart_web(index)
        super()._mend()
