"""The farm of bare flows: one schedule, one network of messages, and dice for all of it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from coatcheck.errors import SessionUnavailable
from coatcheck.replication.notice import EVERYBODY, Notice
from coatcheck.replication.version import SERVER_ID_BYTES
from coatcheck.simulation.application import Attempt, Response
from coatcheck.simulation.bare.middleware import App
from coatcheck.simulation.bare.network import Network
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.bare.travelling import SITES, Traveller, hand_offs_of, new_codec
from coatcheck.simulation.bare.web_server import ModelWebServer
from coatcheck.simulation.browser import Browser
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import Process, Schedule
from coatcheck.simulation.sealing import seals
from coatcheck.simulation.trace import Trace


class BareFarm(Farm[ModelWebServer, ModelSessionServer]):
    """``schedule`` and ``network``: who decides what happens next, if not time and dice."""

    SETTLE_S, CALM_S, GLANCE_S = 8.0, 12.0, 1.0

    def __init__(
        self, scenario: Scenario, trace: Trace, schedule: Schedule | None = None, network: Network | None = None
    ) -> None:
        super().__init__(scenario, trace, schedule or Schedule(), Random(scenario.seed * 2))
        self.network = network or Network(self.dice)
        self.network.loss = scenario.loss
        self.network.duplication = scenario.duplication
        self.network.lateness = scenario.lateness
        self.sealer, self.codecs = seals(scenario.real_seal, self.dice)
        self.app = App(self.ledger, self.codecs)
        self.replication = scenario.replication_policy()
        self.policy = scenario.session_policy()
        self.by_id: dict[bytes, ModelWebServer] = {}
        self.hand_off_codec = new_codec(self.dice.randbytes) if scenario.sites else None
        self._open()
        for index in range(scenario.web_servers):
            self.webs.append(self._new_web(index, 0))
        self.browsers = [self._new_browser(f"browser-{n + 1}") for n in range(scenario.browsers)]

    def _new_web(self, index: int, run: int) -> ModelWebServer:
        servers = self._servers_of(index)
        web = ModelWebServer(
            f"web-{index + 1}", run, self.schedule, self.network, servers, self.dice, self.ledger, self.sealer,
            self.scenario.ordered,
        )  # fmt: skip
        if self.scenario.sites:
            web.site = SITES[index % 2]
        web.skew_ms = self.skews_ms[index]
        web.post = self._post
        web.equip(self.dice.randbytes(SERVER_ID_BYTES), self.placements[index], self.replication, self.policy)
        if self.scenario.users:
            web.keep_users(self.scenario.everyone)
        if self.hand_off_codec is not None:
            web.hand_offs = hand_offs_of(web.site, self.hand_off_codec, web.lifecycle)
        self.by_id[web.server_id] = web
        self.trace.name_server(web.server_id, web.name if not run else f"{web.name}#{run}")
        for server in servers.values():
            web.reach[server.name] = server.alive
            if not server.alive:
                web.after(web.PROBE_S, web._probe, server.name)
        self.start_web(web)
        return web

    def _new_browser(self, name: str) -> Browser:
        if not self.scenario.sites:
            return super()._new_browser(name)
        traveller = Traveller(name, self.schedule, self.scenario, self._dice_of(name), self, self.ledger)
        traveller.others = lambda: self.browsers
        return traveller

    def new_server(self, name: str) -> ModelSessionServer:
        return ModelSessionServer(name, self.schedule, self.ledger, self, self.scenario.seed % 2 == 0)

    def start_web(self, web: ModelWebServer) -> None:
        """A web server comes up."""
        web.begin()

    # -- messages between web servers --------------------------------------------------------------

    def notify(self, sender: ModelSessionServer, server_id: bytes, message: Notice) -> None:
        self._post(sender, server_id, message.encode())

    def _post(self, sender: ModelSessionServer, server_id: bytes, message: bytes) -> None:
        for web in list(self.by_id.values()):
            if web.alive and server_id in (web.server_id, EVERYBODY):
                self._post_to(web, sender, message)

    def _post_to(self, web: ModelWebServer, sender: ModelSessionServer, message: bytes) -> None:
        lost = bool(self.lost_notices) and self.dice.random() < self.lost_notices
        if web.lines is None:
            if not lost:
                self.network.send(sender.name, web, web.on_message, message)
            return
        line = web.lines.get(sender.name)
        if line is not None and line.run == sender.run:
            if lost:
                line.lose()
            line.to_web(web.on_message, message)

    def calm(self) -> None:
        super().calm()
        self.network.heal()

    def look_through(self) -> float:
        for web in self.webs:
            web.look_through()
        return 0.0

    # -- requests ----------------------------------------------------------------------------------

    def _carry(self, to: Process, act: Callable[..., None], *args: Any) -> None:
        self.network.carry(to, act, *args)

    def _hand_over(self, attempt: Attempt, web: ModelWebServer, think_s: float) -> None:
        def ended(response: Response | None, error: Exception | None) -> None:
            if response is None:
                response = Response(503 if isinstance(error, SessionUnavailable) else 409)
            self._handled(attempt, web, response, error, error)

        attempt.task = web.runner.start(self.app.handle(attempt, web, think_s), ended, attempt)
