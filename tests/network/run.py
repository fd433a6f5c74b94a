"""One run: forty browsers, two machines, three session servers, and a network that a seed cuts to pieces."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import msgspec

from .browser import Browser
from .cuts import DOORS, LINKS, Cut, draw
from .judge import SETTLE_S, Account, Answer, Disturbances, Judge
from .links import Order
from .site import Site, now

BROWSERS = 40
MOST_BROKEN = 20
"""Broken promises after which a run ends: more of them tell no more."""
LONGEST_SLEEP_S = 0.2


class Report(msgspec.Struct):
    """What a run found. ``answers``: by request and status."""

    seed: int
    seconds: float
    cuts: Counter[str]
    answers: Counter[str]
    carried: dict[str, int]
    still_s: float
    events: dict[str, dict[str, int]]
    broken: list[str]

    def lines(self) -> list[str]:
        asked, refused = sum(self.answers.values()), sum(n for word, n in self.answers.items() if word.endswith(" 503"))
        cuts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.cuts.items()))
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s, {asked} requests, {refused} refused",
            f"  {sum(self.cuts.values())} cuts: {cuts}; {self.still_s:.1f} s without time for the links",
            "  answers: " + ", ".join(f"{count} {word}" for word, count in sorted(self.answers.items())),
        ]
        lines += [f"  machine {machine} reported: {events}" for machine, events in self.events.items()]
        lines += [f"BROKEN {words}" for words in self.broken]
        return [*lines, f"{len(self.broken)} promises broken" if self.broken else "no promise broken"]


class Run:
    """A run of ``seconds`` with cuts from ``seed``; its story goes to ``network.jsonl`` in ``folder``."""

    def __init__(self, seed: int, seconds: float, folder: Path, browsers: int = BROWSERS) -> None:
        self._seed, self._seconds, self._count = seed, seconds, browsers
        self._site = Site(folder)
        self._disturbances = Disturbances()
        self._judge = Judge(self._disturbances)
        self._story = (folder / "network.jsonl").open("w", buffering=1 << 16)
        self._cuts: Counter[str] = Counter()
        self._carried: dict[str, int] = {}
        self._began = 0.0
        self._still_s = 0.0

    async def run(self) -> Report:
        try:
            await self._site.start()
            return await self._run()
        finally:
            await self._site.stop()
            self._story.close()

    async def _run(self) -> Report:
        self._began = now()
        accounts = [Account(f"user-{number}", self._judge) for number in range(self._count)]
        browsers = [
            Browser(number, self._seed, self._site.bases, account, self._tell)
            for number, account in enumerate(accounts)
        ]
        try:
            await self._live(browsers)
            await self._calm(browsers)
            await self._do(Order(LINKS[0], "look"))
        finally:
            for browser in browsers:
                await browser.aclose()
        events = await asyncio.to_thread(self._site.events)
        broken = [self._shifted(words) for words in self._judge.broken]
        return Report(
            self._seed,
            now() - self._began,
            self._cuts,
            self._judge.counts,
            self._carried,
            self._still_s,
            events,
            broken,
        )

    def _over(self) -> bool:
        return now() - self._began >= self._seconds or len(self._judge.certain) >= MOST_BROKEN

    async def _live(self, browsers: list[Browser]) -> None:
        cutting = asyncio.create_task(self._cut_links())
        lives = [asyncio.create_task(browser.live(self._over)) for browser in browsers]
        try:
            await asyncio.gather(*lives, cutting)
        finally:
            for task in (*lives, cutting):
                task.cancel()

    async def _cut_links(self) -> None:
        """Each cut begins and ends at its time; when the run is over, all are healed."""
        due: list[tuple[float, bool, Cut]] = []
        for cut in draw(self._seed, self._seconds):
            due += [(cut.at_s, True, cut), (min(cut.until_s, self._seconds), False, cut)]
        begun: set[int] = set()
        for at_s, begins, cut in sorted(due, key=lambda each: (each[0], each[1])):
            while not self._over() and now() - self._began < at_s:
                await asyncio.sleep(min(LONGEST_SLEEP_S, max(0.0, self._began + at_s - now())))
            if begins and not self._over():
                begun.add(id(cut))
                await self._begin(cut)
            elif not begins and id(cut) in begun:
                await self._heal(cut)

    async def _begin(self, cut: Cut) -> None:
        self._cuts[cut.kind] += 1
        self._note({"cut": str(cut)})
        for order in cut.orders:
            self._disturbances.begin(order.link, now())
            await self._do(order)

    async def _heal(self, cut: Cut) -> None:
        for order in cut.healing():
            await self._do(order)
            self._disturbances.end(order.link, now())
        self._note({"healed": str(cut)})

    async def _do(self, order: Order) -> None:
        """Also learns for how long the machine had no time for the links: then all of them were disturbed."""
        state = await self._site.links.do(order)
        self._carried = state.carried
        for began, ended in state.still:
            self._still_s += ended - began
            for link in (*LINKS, *DOORS):
                self._disturbances.during(link, began, ended)

    async def _calm(self, browsers: list[Browser]) -> None:
        """The network is whole again: now everybody is served, and finds all that was acknowledged."""
        await asyncio.sleep(2 * SETTLE_S)
        for act in (Browser.read, Browser.write, Browser.read):
            await asyncio.gather(*(act(browser) for browser in browsers if browser.account.logged_in))

    def _tell(self, who: str, answer: Answer) -> None:
        self._note({"who": who, **msgspec.to_builtins(answer)})

    def _note(self, row: dict[str, object]) -> None:
        times = {name: round(row[name] - self._began, 3) for name in ("began", "ended") if name in row}  # type: ignore[operator]
        written = {"written": sorted(row["written"])} if "written" in row else {}  # type: ignore[call-overload]
        self._story.write(json.dumps({"at": round(now() - self._began, 3), **row, **times, **written}) + "\n")

    def _shifted(self, words: str) -> str:
        """The time of a finding, counted from the start of the run as everything else is."""
        moment, _, rest = words.partition(" s: ")
        return f"{float(moment) - self._began:.2f} s: {rest}"
