"""Keys that are rotated while a site lives: announced to its web servers one by one, and sealing when all have heard.

Whoever rotates may die between two steps, and go on later. In some histories it does not wait for everybody, as if one
web server had been given up for dead that is not: then that one meets keys that it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final

from coatcheck.events import Event, EventKind
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.ring_state import RingState, seed

TELLING_S: Final = 6.0
"""How long it takes at most until a web server hears of new keys."""
LOOK_S: Final = 0.25
MAX_ROTATIONS: Final = 8
EAGER = 0.5
"""In so many histories with faults nobody is waited for."""
SILENT = 0.3
"""So often nobody answers a web server that asks for newer keys."""
ANSWER_S: Final = 0.3


class SiteKeys:
    """The ring of a site, and who of its web servers knows what of it. It has dice of its own."""

    def __init__(self, site: Any) -> None:
        self._site = site
        scenario = site.scenario
        self._dice = Random(f"keys {scenario.seed}")
        self._state: RingState = seed((self._dice.randbytes(32),), 0)
        self.all = KeyRing(*self._secrets())
        """What browsers' cookies, and everything that is stored, can be opened with by the judge."""
        self._known: dict[Any, set[bytes]] = {}
        self._is_eager = not scenario.faultless and self._dice.random() < EAGER
        self._silent = 0.0 if scenario.faultless else SILENT

    def _secrets(self) -> tuple[tuple[bytes, ...], int]:
        usable = self._state.usable
        return tuple(key.secret for key in usable), usable.index(self._state.active)

    # -- a web server ------------------------------------------------------------------------------

    def starts(self, web: Any) -> dict[str, Any]:
        """What a web server is started with: the keys of this moment, and whom to ask for newer ones."""
        secrets, primary = self._secrets()
        self._known[web] = set(secrets)
        return {"ring": KeyRing(secrets, primary), "refresh_keys": self._asking(web)}

    def _asking(self, web: Any) -> Callable[[], Any]:
        async def refresh() -> bool:
            await asyncio.sleep(self._dice.random() * ANSWER_S)
            if self._dice.random() < self._silent:
                return False
            self._learn(web)
            return True

        return refresh

    def _learn(self, web: Any) -> None:
        secrets, primary = self._secrets()
        web.sessions.change_keys(secrets, primary)
        self._known[web] = set(secrets)

    def _tell(self, web: Any) -> None:
        if web.alive and not web.machine.frozen:
            web.machine.call(self._learn, web)
        elif web.alive:
            self._site.schedule.after(LOOK_S, self._tell, web)

    def judge(self, web: Any, event: Event) -> None:
        """Nobody in a simulation makes tokens up: each that is refused is an honest browser's, logged out."""
        if event.kind is EventKind.TOKEN_REJECTED:
            self._site.ledger.fail("keys", f"{web.name} refuses a browser's token: {event.detail}")
        if event.kind is EventKind.CORRUPT_ENTRY and "unknown_key" in event.detail:
            self._site.ledger.fail("keys", f"{web.name} leaves a copy out: {event.detail}")

    # -- rotations ---------------------------------------------------------------------------------

    def plan(self, span_s: float) -> None:
        """The rotations of this history."""
        if self._dice.random() < 0.75:
            for _ in range(self._dice.randint(1, MAX_ROTATIONS)):
                self._site.schedule.after(self._dice.random() * span_s, self._rotate)

    def _rotate(self) -> None:
        if self._state.announced is None:
            self._state = self._state.announce(self._dice.randbytes(32))
            self.all.change(*self._secrets())
            self._site.ledger.counts["keys: announced"] += 1
            self._tell_all()
        if self._dice.random() < 0.2:
            return  # whoever rotates dies here; a later rotation goes on with the same key
        self._when_known()

    def _when_known(self) -> None:
        announced = self._state.announced
        if announced is None:
            return
        webs = [web for web in self._site.webs if web.alive]
        if not self._is_eager and any(announced.secret not in self._known[web] for web in webs):
            self._site.schedule.after(LOOK_S, self._when_known)
            return
        self._state = self._state.activate(announced.id)
        self.all.change(*self._secrets())
        self._site.ledger.counts["keys: activated"] += 1
        self._tell_all()

    def _tell_all(self) -> None:
        for web in self._site.webs:
            self._site.schedule.after(self._dice.random() * TELLING_S, self._tell, web)
