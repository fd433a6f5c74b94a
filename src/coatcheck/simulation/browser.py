"""Browsers: a cookie jar, several tabs, answers that overtake each other; and now and then a thief."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from coatcheck.simulation.application import Attempt, Cookies, Kind, Response
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import Process, Schedule

KINDS: tuple[Kind, ...] = (
    "read", "write", "delete", "register", "count", "nested", "rotate", "login", "logout",
    "close_user", "close_others", "close_all",
)  # fmt: skip
WEIGHTS = (34, 28, 9, 6, 6, 4, 4, 4, 2, 0, 0, 0)
WEIGHTS_OF_USERS = (24, 18, 4, 2, 2, 2, 4, 24, 6, 4, 6, 0)
CLOSES_OF_ALL = 3
"""The weight of an operator's close of everybody's sessions, where there are any."""
THEFT_KINDS: tuple[Kind, ...] = ("read", "write")


class FrontDoor(Protocol):
    """Where requests go in. ``calm_since``: when faults stopped, in the schedule's seconds; infinite until then."""

    calm_since: float

    def next_number(self) -> int: ...

    def dispatch(self, attempt: Attempt) -> None: ...


class Browser(Process):
    """Sends requests with the cookies that it has, and takes the cookies of each answer as it comes."""

    PATIENCE_S = 6.0

    def __init__(
        self, name: str, schedule: Schedule, scenario: Scenario, rng: Random, door: FrontDoor, ledger: Ledger
    ) -> None:
        super().__init__(name, schedule)
        self._scenario = scenario
        self._rng = rng
        self._door = door
        self._ledger = ledger
        self.jar = Cookies()
        self.remaining = scenario.requests
        self.tabs = scenario.tabs
        self.outstanding: dict[Attempt, None] = {}
        self.web: Any = None
        """Where the last answer came from: the route cookie."""
        self.honest = True
        self._login_set_at = 0.0
        self.wants: Callable[[str], bool] = lambda name: True
        """Which of its requests are sent, by name: a history may be run again without some."""
        self._ticks = 0
        weights = list(WEIGHTS_OF_USERS if scenario.users else WEIGHTS)
        if not scenario.logins:
            weights[7] = weights[8] = 0
        if scenario.everyone:
            weights[-1] = CLOSES_OF_ALL
        self._weights = weights

    @property
    def done(self) -> bool:
        return not self.remaining and not self.outstanding

    def tick(self) -> None:
        """Perhaps send a request; there is a next tick until all are sent."""
        if not self.remaining:
            return
        if len(self.outstanding) < self.tabs:
            self.remaining -= 1
            kinds = KINDS if self.honest else THEFT_KINDS
            kind = self._rng.choices(kinds, self._weights if self.honest else (3, 1))[0]
            self._ticks += 1
            if self.wants(f"{self.name}.{self._ticks}"):
                self.send(kind)
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        gap = self._scenario.gap_s
        pause = self._rng.expovariate(1.0) * gap
        if self._rng.random() < 0.06:
            pause += self._rng.random() * self._scenario.sleep_s  # the user reads
        self.after(pause, self.tick)

    def send(self, kind: Kind) -> None:
        attempt = Attempt(self._door.next_number(), kind, self, Cookies(self.jar.anonymous, self.jar.login), self._now)
        self.outstanding[attempt] = None
        self._door.dispatch(attempt)
        self.after(self.PATIENCE_S, self._give_up, attempt)

    @property
    def _now(self) -> float:
        return self.schedule.now

    def _give_up(self, attempt: Attempt) -> None:
        self.outstanding.pop(attempt, None)

    def receive(self, attempt: Attempt, response: Response) -> None:
        """Take the cookies of an answer. Also of one that comes after others that were asked for later."""
        if attempt not in self.outstanding:
            return
        del self.outstanding[attempt]
        ledger, jar = self._ledger, self.jar
        ledger.longest_trip_s = max(ledger.longest_trip_s, self._now - attempt.sent_at)
        if ledger.trace.on:
            ledger.say(f"#{attempt.number} {attempt.kind}: {response.status} reaches {self.name}{_cookies(response)}")
        if response.status == 200:
            self.web = attempt.web
        self._judge_login(attempt, response)
        if response.set_anonymous is not None:
            jar.anonymous = response.set_anonymous
        if response.set_login is not None:
            jar.login = response.set_login
            if attempt.kind == "login":
                self._login_set_at = self._now
        if response.clear_anonymous:
            jar.anonymous = None
        if response.clear_login:
            jar.login = None

    def _judge_login(self, attempt: Attempt, response: Response) -> None:
        """A login is never undone by a late answer (protocol section 7)."""
        if not (response.clear_login or response.set_login is not None) or attempt.kind == "login":
            return
        if attempt.sent_at < self._login_set_at:
            if attempt.cookies.login is None and attempt.kind == "travel" and response.set_login is not None:
                self._ledger.excuse("section 12: of an arrival and a login in another tab, what is answered last stays")
            elif attempt.cookies.login is None:
                self._ledger.fail("I5", f"a login was undone by the late answer of #{attempt.number}")
            elif response.clear_login:
                self._ledger.excuse("cookies: a logout overtaken by the next login")
            else:
                self._ledger.excuse("cookies: a change of privilege overtaken by an answer of the old session")


def _cookies(response: Response) -> str:
    names = ("set_anonymous", "set_login", "clear_anonymous", "clear_login")
    words = [name.replace("_", " ") for name in names if getattr(response, name)]
    return ", " + ", ".join(words) if words else ""
