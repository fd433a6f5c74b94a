"""The farm: hosts of web servers and of session servers, browsers, and who brings their requests."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from coatcheck.errors import CoatcheckError, ConflictError, SessionClosed, SessionUnavailable
from coatcheck.replication.placement import Placement
from coatcheck.simulation.application import Attempt, Cookies, Response
from coatcheck.simulation.browser import Browser
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.site.front import Front
from coatcheck.simulation.site.session_host import SessionHost
from coatcheck.simulation.site.web_host import WebHost, WebHostPlan
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.world.world import SimulatedWorld
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import SealedToken, TokenCodec

FARM: Final = "simulated"
PASSWORD: Final = "simulated-password"
RETRY_AFTER_S: Final = 1.0
GATEWAY_LATE_S: Final = 2.5


class SiteCodecs:
    """Reads what browsers hold."""

    def __init__(self, ring: KeyRing, dice: Random) -> None:
        self._codecs = {
            login: TokenCodec(ring, "login" if login else "anonymous", FARM, dice.randbytes) for login in (False, True)
        }

    def open(self, sealed: bytes, login: bool) -> SealedToken:
        return self._codecs[login].open(sealed)


class Site:
    """Everything that a history is made of. Build it, and let it run, while its world is running."""

    def __init__(
        self, scenario: Scenario, trace: Trace, world: SimulatedWorld, wants: Callable[[str], bool] = lambda name: True
    ) -> None:
        """``wants``: which of the browsers' requests are sent, by name."""
        self.scenario = scenario
        self.trace = trace
        self.world = world
        self.lost_responses = scenario.lost_responses
        self.lost_notices = scenario.lost_notices
        self.cancelled = scenario.cancelled
        self.schedule = world.schedule
        self.dice = Random(f"site {scenario.seed}")
        wire = world.wire
        wire.loss, wire.fragmentation, wire.lateness = scenario.loss, scenario.duplication, scenario.lateness
        self.ledger: Any = Ledger(scenario, self.schedule, trace)
        world.complain = self._complain
        ring = KeyRing([self.dice.randbytes(32)])
        self.codecs = SiteCodecs(ring, self.dice)
        sealer = PayloadSealer(ring, FARM, self.dice.randbytes)
        self._password = PASSWORD if scenario.real_seal else ""
        arguments = {
            "farm": FARM, "ring": ring, "copies": scenario.copies, "replication": scenario.replication_policy(),
            "policy": scenario.session_policy(),
        }  # fmt: skip
        self._plan = WebHostPlan(arguments, sealer, self.ledger, self._password)
        names = [f"store-{number + 1}" for number in range(scenario.session_servers)]
        self.placement = Placement(names, scenario.copies)
        """The newest list of session servers; a web server learns it when it is restarted."""
        self.placements = [self.placement] * scenario.web_servers
        """By web server: the list that it knows, or is to know at its next start."""
        self.servers: dict[str, SessionHost] = {name: self.new_server(name) for name in self.placement.servers}
        self.ledger.servers = self.servers
        self.skews_ms = [int(scenario.skew_ms * self.dice.random()) for _ in range(scenario.web_servers)]
        self.ledger.skew_range_ms = scenario.skew_ms
        names = [f"web-{number + 1}" for number in range(scenario.web_servers)]
        self.front = Front(self, names) if scenario.director else None
        """The shipped director and the way to it; ``None``: requests are brought as if there were a simple one."""
        self.calm_since = float("inf")
        world.run(0.05)  # who keeps sessions is there before who asks for them
        self.webs = [self._new_web(index, 0) for index in range(scenario.web_servers)]
        world.run(1.5, lambda: all(web.ready for web in self.webs))
        self._wants = wants
        self.browsers = [self._new_browser(f"browser-{number + 1}") for number in range(scenario.browsers)]
        self._numbers = 0
        self._in_hand: dict[Attempt, None] = {}

    def _complain(self, text: str, error: BaseException | None) -> None:
        self.ledger.fail("errors", f"{text}: {error!r}" if error is not None else text)

    def _new_browser(self, name: str) -> Browser:
        """Each has dice of its own: what one does leaves the others as they are."""
        dice = Random(f"{name} {self.scenario.seed}")
        browser = Browser(name, self.schedule, self.scenario, dice, self, self.ledger)
        browser.wants = self._wants
        return browser

    def new_server(self, name: str) -> SessionHost:
        by_wall = self.scenario.seed % 2 == 0
        return SessionHost(name, self.world, self.ledger, self._password, by_wall)

    def _new_web(self, index: int, run: int) -> WebHost:
        placement = self.placements[index]
        machine = self.world.machine(f"web-{index + 1}", same_clock=True)
        machine.skew_ms = self.skews_ms[index]
        servers = {name: self.servers[name] for name in placement.servers}
        return WebHost(self, machine.name, run, machine, self._plan, servers, placement.list_number)

    def restart_web(self, index: int) -> None:
        if not self.webs[index].alive:
            self.webs[index] = self._new_web(index, self.webs[index].run + 1)

    def change_list(self, index: int, placement: Placement) -> None:
        """A web server is restarted with another list of session servers."""
        self.placements[index] = placement
        web = self.webs[index]
        if web.alive:
            web.kill()
            self.web_died(web)
            self.restart_web(index)

    # -- the director ------------------------------------------------------------------------------

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def dispatch(self, attempt: Attempt) -> None:
        """To the web server of the route cookie, mostly; to another one if that is down."""
        if self.front is not None:
            self.front.send(attempt)
            return
        web: Any = attempt.browser.web
        if web is None or not web.ready or self.dice.random() >= self.scenario.stickiness:
            ready = [one for one in self.webs if one.ready]
            if not ready:
                self._answer(attempt, Response(502))
                return
            web = self.dice.choice(ready)
        attempt.web = web
        self._in_hand[attempt] = None
        if self.trace.on:
            self.ledger.say(f"#{attempt.number} {attempt.kind}: {attempt.browser.name} to {web.name}")
        self._carry(self._arrive, attempt, web)
        if self.scenario.retries and attempt.kind == "read":
            self.schedule.after(RETRY_AFTER_S, self._retry, attempt)

    def _carry(self, act: Any, *args: Any) -> None:
        """A request to a web server or its answer: perhaps late, perhaps lost, never twice (TCP)."""
        wire = self.world.wire
        delay_s = wire.latency_s()
        if wire.lateness and self.dice.random() < wire.lateness:
            delay_s += GATEWAY_LATE_S * self.dice.random()
        if wire.loss and self.dice.random() < wire.loss:
            return
        self.schedule.after(delay_s, act, *args)

    def _arrive(self, attempt: Attempt, web: WebHost) -> None:
        if not web.alive:
            return
        think_s = 0.0 if self.dice.random() < 0.8 else self.dice.random() * 0.5
        attempt.began_at = self.schedule.now
        web.arrive(attempt, think_s, lambda response, error: self._handled(attempt, web, response, error))
        if self.cancelled and self.dice.random() < self.cancelled:
            self.schedule.after(self.dice.random() * 0.02, web.cancel, attempt)

    def _handled(self, attempt: Attempt, web: WebHost, response: Response | None, error: BaseException | None) -> None:
        if response is None:
            self.ledger.crashed(web, error)
            response = Response(500)
        if response.status != 200:
            self.judge_refusal(attempt, web, response.status)
        if self.lost_responses and self.dice.random() < self.lost_responses:
            return
        self._carry(self._answer, attempt, response)

    def judge_refusal(self, attempt: Attempt, web: WebHost, status: int) -> None:
        """A web server has answered that the session cannot be had, or saved."""
        ledger, error = self.ledger, attempt.error
        if self.trace.on:
            ledger.say(f"#{attempt.number} {attempt.kind} fails on {web.name}: {status} {error}")
        if isinstance(error, SessionUnavailable):
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
        else:
            ledger.fail("errors", f"#{attempt.number} is answered with {status}: {error!r}")

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

    def web_died(self, web: WebHost, told: bool = True) -> None:
        """Connections break: reads are retried elsewhere, the others fail. ``told``: the director, by a supervisor."""
        if self.front is not None:
            self.front.web_died(web, told)
        died: Any = web
        for attempt in list(self._in_hand):
            if attempt.web is died:
                del self._in_hand[attempt]
                if attempt.kind == "read" and self.scenario.retries:
                    self._in_hand[attempt] = None
                    self._retry(attempt)
                else:
                    self._answer(attempt, Response(502))

    # -- operators and thieves ---------------------------------------------------------------------

    def close_by_operator(self, index: int, key: bytes) -> None:
        web = self.webs[index]
        if web.ready:
            self.ledger.log(key).willed = True
            web.machine.start(self._close(web, key, self.schedule.now))

    async def _close(self, web: WebHost, key: bytes, began: float) -> None:
        try:
            closed = await web.sessions.close_key(key)
        except CoatcheckError:
            return
        self.ledger.closed(web, self.ledger.log(key), closed.holds, began)

    def steal(self) -> None:
        """Somebody copies a browser's cookies, and uses them."""
        victim = self.dice.choice(self.browsers)
        thief = self._new_browser("thief")
        thief.jar = Cookies(victim.jar.anonymous, victim.jar.login)
        thief.honest = False
        thief.remaining = 4
        for sealed, login in ((thief.jar.anonymous, False), (thief.jar.login, True)):
            if sealed is not None:
                self.ledger.log(self.codecs.open(sealed, login).key).thief = True
        self.browsers.append(thief)
        thief.after(self.dice.random() * 3, thief.tick)

    def break_connections(self) -> None:
        """Every connection to a session server breaks once: everybody looks through all that is stored."""
        for web in self.webs:
            for sock in list(web.machine.kernel.sockets.values()):
                if sock.peer is not None and sock.peer.host in self.servers:
                    self.world.wire.reset(sock)
