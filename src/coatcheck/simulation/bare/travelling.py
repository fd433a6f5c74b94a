"""Browsers that go from site to site, and now and then open what they have seen in another's address bar."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

from coatcheck.hand_off.messages import HandOffCodec
from coatcheck.hand_off.rules import HandOffs, SiteVisit
from coatcheck.hand_off.sites import Site, Sites
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.simulation.application import Attempt, Cookies, Kind, Response
from coatcheck.simulation.browser import Browser, FrontDoor
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.schedule import Schedule
from coatcheck.simulation.sealing import FARM
from coatcheck.tokens.keyring import KeyRing

TABLE: Final = (
    Site(name="home", origin="https://home.example"),
    Site(name="away", origin="https://away.example", paths=("/away/*",)),
)
COOKIES: Final = CookiePolicy()
SITES: Final = tuple(Sites(table=TABLE).chain_name(site, COOKIES) for site in TABLE)
"""As records and web servers call them."""
MOST_REDIRECTS: Final = 6
"""Of one trip, as the protocol says; one that its user begins again counts anew."""
FOLLOWED: Final = 0.4
"""So many of a browser's steps are links to the other site."""
FORGOTTEN: Final = 0.3
"""So many of them are followed when the browser has lost its cookies of the other site: it joins a chain then."""
AGAIN: Final = 0.7
"""So many users try an address again from which no answer came."""
LATEST_THEFT_S: Final = 25.0


def new_codec(random_bytes: Callable[[int], bytes]) -> HandOffCodec:
    """What the farm's messages are sealed with."""
    return HandOffCodec(KeyRing([random_bytes(32)]), FARM, TABLE[0].origin, random_bytes)


def hand_offs_of(site: str, codec: HandOffCodec, lifecycle: Lifecycle) -> HandOffs:
    """The rules of a web server of one site."""
    here = TABLE[SITES.index(site)]
    return HandOffs(Sites(table=TABLE, here=here.name), codec, lifecycle, COOKIES)


class Traveller(Browser):
    """Cookies for each site, links to the other one, and redirects that it follows."""

    others: Callable[[], list[Browser]]
    """All browsers of the farm, who may open an address that this one was sent to."""

    def __init__(
        self, name: str, schedule: Schedule, scenario: Scenario, rng: Random, door: FrontDoor, ledger: Ledger
    ) -> None:
        super().__init__(name, schedule, scenario, rng, door, ledger)
        self._jars = {site: Cookies() for site in SITES}
        self._webs: dict[str, Any] = dict.fromkeys(SITES)
        self._logins_at = dict.fromkeys(SITES, 0.0)
        self._redirects: dict[Attempt, int] = {}
        self._stolen: set[Attempt] = set()

    def send(self, kind: Kind) -> None:
        site = self._rng.choice(SITES)
        if kind == "read" or self._rng.random() < FOLLOWED:
            if self._rng.random() < FORGOTTEN:
                other = self._jars[SITES[site == SITES[0]]]
                other.anonymous = other.login = None
            path = f"/away/{self._door.next_number()}" if site == SITES[0] else f"/home/{self._door.next_number()}"
            self.visit(site, path, "")
            return
        self._dispatch(kind, site)

    def visit(self, site: str, path: str, query: str, redirects: int = 0, stolen: bool = False) -> None:
        """Ask for an address, wherever it was seen."""
        self._dispatch("travel", site, SiteVisit(method="GET", path=path, query=query), redirects, stolen)

    def _open_stolen(self, site: str, path: str, query: str) -> None:
        if self._door.calm_since > self._now:
            self.visit(site, path, query, stolen=True)

    def _dispatch(
        self, kind: Kind, site: str, visit: SiteVisit | None = None, redirects: int = 0, stolen: bool = False
    ) -> None:
        jar = self._jars[site]
        cookies = Cookies(jar.anonymous, jar.login, jar.binder)
        attempt = Attempt(self._door.next_number(), kind, self, cookies, self._now)
        attempt.site, attempt.visit = site, visit
        self._redirects[attempt] = redirects
        if stolen:
            self._stolen.add(attempt)
        self.outstanding[attempt] = None
        self.web = self._webs[site]
        self._door.dispatch(attempt)
        self.after(self.PATIENCE_S, self._give_up, attempt)

    def receive(self, attempt: Attempt, response: Response) -> None:
        if attempt not in self.outstanding:
            return
        site = attempt.site
        self.jar, self.web, self._login_set_at = self._jars[site], self._webs[site], self._logins_at[site]
        super().receive(attempt, response)
        self._webs[site], self._logins_at[site] = self.web, self._login_set_at
        if response.go is not None:
            if response.go.binder is not None:
                self._jars[site].binder = response.go.binder
            self._follow(attempt, response.go.location)

    def _follow(self, attempt: Attempt, location: str) -> None:
        redirects = self._redirects.pop(attempt, 0) + 1
        if redirects > MOST_REDIRECTS:
            self._ledger.fail("H4", f"{self.name} is sent on for the {redirects}th time")
            return
        parts = urlsplit(location)
        site = next(
            name for name, one in zip(SITES, TABLE, strict=True) if one.origin == f"{parts.scheme}://{parts.netloc}"
        )
        stolen = attempt in self._stolen
        self.visit(site, parts.path, parts.query, redirects, stolen)
        # What a thief is sent to is not stolen again: whoever reads all of a victim's addresses as they come, and sends
        # the victim where a thief was sent, has the session (threat model).
        if not stolen and self._scenario.stolen_urls and self._rng.random() < self._scenario.stolen_urls:
            other = self._rng.choice(self.others())
            if other is not self and isinstance(other, Traveller):
                delay_s = self._rng.choice((0.0, 0.5, LATEST_THEFT_S)) * self._rng.random()
                other.after(delay_s, other._open_stolen, site, parts.path, parts.query)

    def _give_up(self, attempt: Attempt) -> None:
        visit = attempt.visit
        calm = self._door.calm_since <= self._now
        if attempt in self.outstanding and visit is not None and not calm and self._rng.random() < AGAIN:
            self.visit(attempt.site, visit.path, visit.query, stolen=attempt in self._stolen)
        super()._give_up(attempt)
