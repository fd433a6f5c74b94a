"""The farm as shipped: hosts of web servers and of session servers, and perhaps of a director."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final

from coatcheck.simulation.application import Attempt
from coatcheck.simulation.convergence import has_converged
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.sealing import FARM, RealCodecs
from coatcheck.simulation.site.front import Front
from coatcheck.simulation.site.keys import SiteKeys
from coatcheck.simulation.site.session_host import SessionHost
from coatcheck.simulation.site.web_host import AppFails, WebHost, WebHostPlan
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.world.world import SimulatedWorld
from coatcheck.tokens.keyring import PayloadSealer

PASSWORD: Final = "simulated-password"
GATEWAY_LATE_S: Final = 2.5


class ShippedFarm(Farm[WebHost, SessionHost]):
    """Build it, and let it run, while its world is running."""

    SETTLE_S, CALM_S, GLANCE_S = 4.0, 8.0, 0.1
    """The second: longer than the interval of ``BackgroundRepair``, and the scans that follow an alarm."""

    def __init__(
        self, scenario: Scenario, trace: Trace, world: SimulatedWorld, wants: Callable[[str], bool] = lambda name: True
    ) -> None:
        super().__init__(scenario, trace, world.schedule, Random(f"site {scenario.seed}"), wants)
        self.world = world
        wire = world.wire
        wire.loss, wire.fragmentation, wire.lateness = scenario.loss, scenario.duplication, scenario.lateness
        world.complain = self._complain
        self.dice.randbytes(32)  # histories that were found stay what they are
        self.keys = SiteKeys(self)
        self.codecs = RealCodecs(self.keys.all, self.dice)
        sealer = PayloadSealer(self.keys.all, FARM, self.dice.randbytes)
        self._password = PASSWORD if scenario.real_seal else ""
        arguments = {
            "farm": FARM, "copies": scenario.copies, "replication": scenario.replication_policy(),
            "policy": scenario.session_policy(),
        }  # fmt: skip
        self._plan = WebHostPlan(arguments, sealer, self.ledger, self._password)
        self._open()
        names = [f"web-{number + 1}" for number in range(scenario.web_servers)]
        self.front = Front(self, names) if scenario.director else None
        """The shipped director and the way to it; ``None``: requests are brought as if there were a simple one."""
        world.run(0.05)  # who keeps sessions is there before who asks for them
        self.webs = [self._new_web(index, 0) for index in range(scenario.web_servers)]
        world.run(1.5, lambda: all(web.ready for web in self.webs))
        self.browsers = [self._new_browser(f"browser-{number + 1}") for number in range(scenario.browsers)]

    def _complain(self, text: str, error: BaseException | None) -> None:
        if isinstance(error, AppFails):
            return  # its operator is to be told
        if error is not None and isinstance(error.__context__ or error, GeneratorExit):
            return  # what a dead process has left is collected
        self.ledger.fail("errors", f"{text}: {error!r}" if error is not None else text)

    def _dice_of(self, name: str) -> Random:
        """Each has dice of its own: what one does leaves the others as they are."""
        return Random(f"{name} {self.scenario.seed}")

    def new_server(self, name: str) -> SessionHost:
        by_wall = self.scenario.seed % 2 == 0
        return SessionHost(name, self.world, self.ledger, self._password, by_wall)

    def _new_web(self, index: int, run: int) -> WebHost:
        machine = self.world.machine(f"web-{index + 1}", same_clock=True)
        machine.skew_ms = self.skews_ms[index]
        servers, list_number = self._servers_of(index), self.placements[index].list_number
        return WebHost(self, machine.name, run, machine, self._plan, servers, list_number)

    def calm(self) -> None:
        super().calm()
        wire = self.world.wire
        wire.loss = wire.fragmentation = wire.lateness = 0.0

    # -- requests ----------------------------------------------------------------------------------

    def dispatch(self, attempt: Attempt) -> None:
        if self.front is not None:
            self.front.send(attempt)
        else:
            super().dispatch(attempt)

    def _carry(self, to: Any, act: Callable[..., None], *args: Any) -> None:
        wire = self.world.wire
        delay_s = wire.latency_s()
        if wire.lateness and self.dice.random() < wire.lateness:
            delay_s += GATEWAY_LATE_S * self.dice.random()
        if wire.loss and self.dice.random() < wire.loss:
            return
        self.schedule.after(delay_s, act, *args)

    def _hand_over(self, attempt: Attempt, web: WebHost, think_s: float) -> None:
        web.arrive(attempt, think_s, partial(self._handled, attempt, web))

    def web_died(self, web: WebHost, told: bool = True) -> None:
        if self.front is not None:
            self.front.web_died(web, told)
        super().web_died(web, told)

    # -- the end -----------------------------------------------------------------------------------

    def has_settled(self) -> bool:
        return all(web.is_connected for web in self.webs)

    def look_through(self) -> float:
        """Every connection to a session server breaks once, if any may have broken before."""
        if not self.ledger.disturbed:
            return 0.0
        for web in self.webs:
            for sock in list(web.machine.kernel.sockets.values()):
                if sock.peer is not None and sock.peer.host in self.servers:
                    self.world.wire.reset(sock)
        return 1.0

    def needs_no_rest(self) -> bool:
        return has_converged(self)

    def judge_end(self) -> None:
        if self.front is not None:
            self.front.judge_end()
