"""The simulated farm: web servers, session servers, browsers and the director between them."""

from __future__ import annotations

from random import Random
from typing import Any

from coatcheck.errors import CoatcheckError, ConflictError, SessionClosed, SessionUnavailable
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.notice import EVERYBODY, Notice
from coatcheck.replication.placement import Placement
from coatcheck.replication.version import SERVER_ID_BYTES
from coatcheck.simulation.application import Attempt, Cookies, Response
from coatcheck.simulation.bare.middleware import App
from coatcheck.simulation.bare.network import Network
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.bare.web_server import ModelWebServer
from coatcheck.simulation.browser import Browser
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import Schedule
from coatcheck.simulation.sealing import seals
from coatcheck.simulation.trace import Trace


class Farm:
    """Everything that a history is made of."""

    RETRY_AFTER_S = 1.0

    def __init__(
        self, scenario: Scenario, trace: Trace, schedule: Schedule | None = None, network: Network | None = None
    ) -> None:
        """``schedule`` and ``network``: who decides what happens next, if not time and dice."""
        self.scenario = scenario
        self.trace = trace
        self.rng = Random(scenario.seed * 2)
        self.schedule = schedule or Schedule()
        self.network = network or Network(self.rng)
        self.network.loss = scenario.loss
        self.network.duplication = scenario.duplication
        self.network.lateness = scenario.lateness
        self.ledger = Ledger(scenario, self.schedule, trace)
        self.sealer, self.codecs = seals(scenario.real_seal, self.rng)
        self.app = App(self.ledger, self.codecs)
        self.placement = Placement([f"store-{n + 1}" for n in range(scenario.session_servers)], scenario.copies)
        """The newest list of session servers; a web server learns it when it is restarted."""
        self.placements = [self.placement] * scenario.web_servers
        """By web server: the list that it knows, or is to know at its next start."""
        self.servers = {name: self.new_server(name) for name in self.placement.servers}
        self.ledger.servers = self.servers
        self.replication = scenario.replication_policy()
        self.policy = scenario.session_policy()
        self.skews_ms = [int(scenario.skew_ms * self.rng.random()) for _ in range(scenario.web_servers)]
        self.ledger.skew_range_ms = scenario.skew_ms
        self.webs: list[ModelWebServer] = []
        self.by_id: dict[bytes, ModelWebServer] = {}
        for index in range(scenario.web_servers):
            self.webs.append(self._new_web(index, 0))
        self.browsers = [
            Browser(f"browser-{n + 1}", self.schedule, scenario, self.rng, self, self.ledger)
            for n in range(scenario.browsers)
        ]
        self.lost_responses = scenario.lost_responses
        self.lost_notices = scenario.lost_notices
        self.cancelled = scenario.cancelled
        self._numbers = 0
        self._in_hand: dict[Attempt, None] = {}

    def _new_web(self, index: int, run: int) -> ModelWebServer:
        placement = self.placements[index]
        servers = {name: self.servers[name] for name in placement.servers}
        web = ModelWebServer(
            f"web-{index + 1}", run, self.schedule, self.network, servers, self.rng, self.ledger, self.sealer,
            self.scenario.ordered,
        )  # fmt: skip
        web.skew_ms = self.skews_ms[index]
        web.post = self._post
        web.equip(self.rng.randbytes(SERVER_ID_BYTES), placement, self.replication, self.policy)
        self.by_id[web.server_id] = web
        self.trace.name_server(web.server_id, web.name if not run else f"{web.name}#{run}")
        for server in servers.values():
            web.reach[server.name] = server.alive
            if not server.alive:
                web.after(web.PROBE_S, web._probe, server.name)
        self.start_web(web)
        return web

    def new_server(self, name: str) -> ModelSessionServer:
        return ModelSessionServer(name, self.schedule, self.ledger, self, self.scenario.seed % 2 == 0)

    def start_web(self, web: ModelWebServer) -> None:
        """A web server comes up."""
        web.begin()

    def change_list(self, index: int, placement: Placement) -> None:
        """A web server is restarted with another list of session servers."""
        self.placements[index] = placement
        web = self.webs[index]
        if web.alive:
            web.kill()
            self.web_died(web)
            self.restart_web(index)

    def restart_web(self, index: int) -> None:
        if not self.webs[index].alive:
            self.webs[index] = self._new_web(index, self.webs[index].run + 1)

    # -- messages between web servers --------------------------------------------------------------

    def notify(self, sender: ModelSessionServer, server_id: bytes, message: Notice) -> None:
        self._post(sender, server_id, message.encode())

    def _post(self, sender: ModelSessionServer, server_id: bytes, message: bytes) -> None:
        for web in list(self.by_id.values()):
            if web.alive and server_id in (web.server_id, EVERYBODY):
                self._post_to(web, sender, message)

    def _post_to(self, web: ModelWebServer, sender: ModelSessionServer, message: bytes) -> None:
        lost = bool(self.lost_notices) and self.rng.random() < self.lost_notices
        if web.lines is None:
            if not lost:
                self.network.send(sender.name, web, web.on_message, message)
            return
        line = web.lines.get(sender.name)
        if line is not None and line.run == sender.run:
            if lost:
                line.lose()
            line.to_web(web.on_message, message)

    # -- the director -------------------------------------------------------------------------------

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def dispatch(self, attempt: Attempt) -> None:
        """To the web server of the route cookie, mostly; to another one if that is down."""
        web = attempt.browser.web
        if web is None or not web.alive or self.rng.random() >= self.scenario.stickiness:
            alive = [one for one in self.webs if one.alive]
            if not alive:
                self._answer(attempt, Response(502))
                return
            web = self.rng.choice(alive)
        attempt.web = web
        attempt.done = lambda response: self._answer(attempt, response)
        self._in_hand[attempt] = None
        if self.trace.on:
            self.ledger.say(f"#{attempt.number} {attempt.kind}: {attempt.browser.name} to {web.name}")
        self.network.carry(web, self._arrive, attempt, web)
        if self.scenario.retries and attempt.kind == "read":
            self.schedule.after(self.RETRY_AFTER_S, self._retry, attempt)

    def _arrive(self, attempt: Attempt, web: ModelWebServer) -> None:
        think_s = 0.0 if self.rng.random() < 0.8 else self.rng.random() * 0.5
        attempt.began_at = self.schedule.now
        flow = self.app.handle(attempt, web, think_s)
        attempt.task = web.runner.start(flow, lambda result, error: self._handled(attempt, web, result, error), attempt)
        if self.cancelled and self.rng.random() < self.cancelled:
            web.after(self.rng.random() * 0.02, web.runner.cancel, attempt.task)

    def _handled(self, attempt: Attempt, web: ModelWebServer, result: Any, error: Exception | None) -> None:
        if error is not None:
            result = Response(503 if isinstance(error, SessionUnavailable) else 409)
            self._judge_error(attempt, web, error)
        if self.lost_responses and self.rng.random() < self.lost_responses:
            return
        self.network.carry(attempt.browser, attempt.done, result)

    def _judge_error(self, attempt: Attempt, web: ModelWebServer, error: Exception) -> None:
        ledger = self.ledger
        if self.trace.on:
            ledger.say(f"#{attempt.number} {attempt.kind} fails on {web.name}: {error}")
        if not isinstance(error, CoatcheckError):
            ledger.crashed(web, error)
        elif isinstance(error, SessionUnavailable):
            if not ledger.disturbed:
                ledger.fail("availability", f"#{attempt.number} refused without any fault: {error}")
            ledger.counts["refused: unavailable"] += 1
        elif isinstance(error, ConflictError):
            ledger.counts["refused: conflict"] += 1
            operation = attempt.operation
            if operation is not None and operation.kind == "write" and not ledger.log(operation.session_key).tombstones:
                ledger.fail("I1", f"#{attempt.number} wrote a key of its own and met a conflict: {error}")
        elif isinstance(error, SessionClosed):
            ledger.counts["refused: closed"] += 1

    def _answer(self, attempt: Attempt, response: Response) -> None:
        if not attempt.answered:
            attempt.answered = True
            self._in_hand.pop(attempt, None)
            attempt.browser.receive(attempt, response)

    def _retry(self, attempt: Attempt) -> None:
        """An idempotent request goes to another server; the first one may still be at work."""
        if attempt in self._in_hand and attempt in attempt.browser.outstanding:
            again = Attempt(self.next_number(), attempt.kind, attempt.browser, attempt.cookies, attempt.sent_at)
            attempt.browser.outstanding[again] = None
            attempt.browser.outstanding.pop(attempt, None)
            attempt.browser.web = None
            attempt.browser.after(attempt.browser.PATIENCE_S, attempt.browser._give_up, again)
            self.dispatch(again)

    def web_died(self, web: ModelWebServer) -> None:
        """Connections break: reads are retried elsewhere, the others fail."""
        for attempt in list(self._in_hand):
            if attempt.web is web:
                del self._in_hand[attempt]
                if attempt.kind == "read" and self.scenario.retries:
                    self._in_hand[attempt] = None
                    self._retry(attempt)
                else:
                    self._answer(attempt, Response(502))

    # -- operators and thieves ----------------------------------------------------------------------

    def close_by_operator(self, index: int, key: bytes) -> None:
        web, now = self.webs[index], self.schedule.now
        if web.alive:
            self.ledger.log(key).willed = True
            web.runner.start(_closing(web, key), lambda closed, error: self._closed(web, key, now, closed, error))

    def _closed(self, web: ModelWebServer, key: bytes, began: float, closed: Any, error: Exception | None) -> None:
        if error is None:
            self.ledger.closed(web, self.ledger.log(key), closed.holds, began)
        elif not isinstance(error, CoatcheckError):
            self.ledger.crashed(web, error)

    def steal(self) -> None:
        """Somebody copies a browser's cookies, and uses them."""
        victim = self.rng.choice(self.browsers)
        thief = Browser("thief", self.schedule, self.scenario, self.rng, self, self.ledger)
        thief.jar = Cookies(victim.jar.anonymous, victim.jar.login)
        thief.honest = False
        thief.remaining = 4
        for sealed, login in ((thief.jar.anonymous, False), (thief.jar.login, True)):
            if sealed is not None:
                self.ledger.log(self.codecs.open(sealed, login).key).thief = True
        self.browsers.append(thief)
        thief.after(self.rng.random() * 3, thief.tick)


def _closing(web: ModelWebServer, key: bytes) -> Flow[Any]:
    return (yield Exclusive(key, web.copies.close(key)))
