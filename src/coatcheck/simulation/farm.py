"""The farm: web servers and session servers, bare or shipped, browsers, and a simple director between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from random import Random
from typing import Any, Final, Generic, TypeVar

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable
from coatcheck.replication.placement import Placement
from coatcheck.simulation.application import Attempt, Cookies, Response
from coatcheck.simulation.browser import Browser
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import Schedule
from coatcheck.simulation.sealing import Codecs
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.watched import WatchedSessionServer, WatchedWebServer

RETRY_AFTER_S: Final = 1.0

Web = TypeVar("Web", bound=WatchedWebServer)
Store = TypeVar("Store", bound=WatchedSessionServer)


class Farm(ABC, Generic[Web, Store]):
    """Everything that a history is made of; what its processes are, each kind of farm says."""

    SETTLE_S: float
    """How long everybody needs at most, when faults have stopped, to find everybody again."""
    CALM_S: float
    """How long it then rests at most before it is judged."""
    GLANCE_S: float
    """How often it is seen whether that was time enough."""
    codecs: Codecs

    def __init__(
        self,
        scenario: Scenario,
        trace: Trace,
        schedule: Schedule,
        dice: Random,
        wants: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """``wants``: which of the browsers' requests are sent, by name."""
        self.scenario = scenario
        self.trace = trace
        self.schedule = schedule
        self.dice = dice
        self._wants = wants
        self.ledger = Ledger(scenario, schedule, trace)
        self.ledger.skew_range_ms = scenario.skew_ms
        self.lost_responses = scenario.lost_responses
        self.lost_notices = scenario.lost_notices
        self.cancelled = scenario.cancelled
        self.placement = Placement([f"store-{n + 1}" for n in range(scenario.session_servers)], scenario.copies)
        """The newest list of session servers; a web server learns it when it is restarted."""
        self.placements = [self.placement] * scenario.web_servers
        """By web server: the list that it knows, or is to know at its next start."""
        self.servers: dict[str, Store] = {}
        self.webs: list[Web] = []
        self.skews_ms: list[int] = []
        self.browsers: list[Browser] = []
        self.calm_since = float("inf")
        self.is_over = False
        """Whether its history has ended: what still lasts then is not mended."""
        self._numbers = 0
        self._in_hand: dict[Attempt, None] = {}

    # -- its processes -----------------------------------------------------------------------------

    @abstractmethod
    def new_server(self, name: str) -> Store: ...

    @abstractmethod
    def _new_web(self, index: int, run: int) -> Web: ...

    def _new_browser(self, name: str) -> Browser:
        browser = Browser(name, self.schedule, self.scenario, self._dice_of(name), self, self.ledger)
        browser.wants = self._wants
        return browser

    def _dice_of(self, name: str) -> Random:
        """What a browser draws from."""
        return self.dice

    def _open(self) -> None:
        """The session servers are there; and how wrong the clocks of the web servers are is known."""
        scenario = self.scenario
        self.servers.update((name, self.new_server(name)) for name in self.placement.servers)
        self.ledger.servers = self.servers
        self.skews_ms = [int(scenario.skew_ms * self.dice.random()) for _ in range(scenario.web_servers)]

    def _servers_of(self, index: int) -> dict[str, Store]:
        """The session servers that a web server is to know at its next start."""
        return {name: self.servers[name] for name in self.placements[index].servers}

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
        web: Web | None = attempt.browser.web
        if web is None or not web.ready or self.dice.random() >= self.scenario.stickiness:
            ready = [one for one in self.webs if one.ready and one.site == attempt.site]
            if not ready:
                self._answer(attempt, Response(502))
                return
            web = self.dice.choice(ready)
        attempt.web = web
        self._in_hand[attempt] = None
        if self.trace.on:
            self.ledger.say(f"#{attempt.number} {attempt.kind}: {attempt.browser.name} to {web.name}")
        self._carry(web, self._arrive, attempt, web)
        if self.scenario.retries and attempt.kind == "read":
            self.schedule.after(RETRY_AFTER_S, self._retry, attempt)

    @abstractmethod
    def _carry(self, to: Any, act: Callable[..., None], *args: Any) -> None:
        """A request to a web server, or its answer to a browser: perhaps late, perhaps lost, never twice (TCP)."""

    def _arrive(self, attempt: Attempt, web: Web) -> None:
        if not web.alive:
            return
        think_s = 0.0 if self.dice.random() < 0.8 else self.dice.random() * 0.5
        attempt.began_at = self.schedule.now
        self._hand_over(attempt, web, think_s)
        if self.cancelled and self.dice.random() < self.cancelled:
            web.after(self.dice.random() * 0.02, web.cancel, attempt)

    @abstractmethod
    def _hand_over(self, attempt: Attempt, web: Web, think_s: float) -> None:
        """A web server carries it out; :meth:`_handled` is told."""

    def _handled(
        self, attempt: Attempt, web: Web, response: Response, error: BaseException | None = None, said: object = ""
    ) -> None:
        if response.status != 200:
            self.judge_refusal(attempt, web, error, said)
        if self.lost_responses and self.dice.random() < self.lost_responses:
            return
        self._carry(attempt.browser, self._answer, attempt, response)

    def judge_refusal(self, attempt: Attempt, web: Web, error: BaseException | None, said: object) -> None:
        """A web server has answered that the session cannot be had, or saved."""
        ledger = self.ledger
        if self.trace.on:
            ledger.say(f"#{attempt.number} {attempt.kind} fails on {web.name}: {said}")
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
            ledger.fail("errors", f"#{attempt.number} fails on {web.name}: {said} ({error!r})")

    def _answer(self, attempt: Attempt, response: Response) -> None:
        if not attempt.answered:
            attempt.answered = True
            self._in_hand.pop(attempt, None)
            attempt.browser.receive(attempt, response)

    def _retry(self, attempt: Attempt) -> None:
        """An idempotent request goes to another server; the first one may still be at work."""
        if attempt in self._in_hand and attempt in attempt.browser.outstanding:
            again = Attempt(self.next_number(), attempt.kind, attempt.browser, attempt.cookies, attempt.sent_at)
            again.site = attempt.site
            attempt.browser.outstanding[again] = None
            attempt.browser.outstanding.pop(attempt, None)
            attempt.browser.web = None
            attempt.browser.after(attempt.browser.PATIENCE_S, attempt.browser._give_up, again)
            self.dispatch(again)

    def web_died(self, web: Web, told: bool = True) -> None:
        """Connections break: reads are retried elsewhere, the others fail. ``told``: the director, by a supervisor."""
        for attempt in list(self._in_hand):
            if attempt.web is web:
                del self._in_hand[attempt]
                if attempt.kind == "read" and self.scenario.retries:
                    self._in_hand[attempt] = None
                    self._retry(attempt)
                else:
                    self._answer(attempt, Response(502))

    def calm(self) -> None:
        """From now on nothing is lost or late by itself."""
        self.lost_responses = self.lost_notices = self.cancelled = 0.0
        self.calm_since = self.schedule.now

    def has_settled(self) -> bool:
        """Whether everybody is there again, and has found everybody."""
        return False

    @abstractmethod
    def look_through(self) -> float:
        """Everybody is to look through all that is stored; answers how long that takes to begin (seconds)."""

    def needs_no_rest(self) -> bool:
        """Whether all copies are as they have to be."""
        return False

    def judge_end(self) -> None:
        """Judge what only this kind of farm has."""

    # -- operators and thieves ---------------------------------------------------------------------

    def close_by_operator(self, index: int, key: bytes) -> None:
        web, began, log = self.webs[index], self.schedule.now, self.ledger.log(key)
        if web.ready:
            log.willed = True
            web.close(key, lambda closed: self.ledger.closed(web, log, closed.holds, began))

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
