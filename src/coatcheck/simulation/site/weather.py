"""What goes wrong in a history, and when: drawn from the seed before it begins, so that parts of it can be left out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Final

import msgspec

from coatcheck.replication.placement import MAX_LIST_NUMBER, Placement
from coatcheck.simulation.site.director_host import DirectorHost
from coatcheck.simulation.site.faults import SiteFaults
from coatcheck.simulation.site.session_host import SessionHost
from coatcheck.simulation.site.site import Site
from coatcheck.simulation.site.web_host import WebHost
from coatcheck.simulation.world.wire import Link

SPAN_S: Final = 6.0
KINDS: Final = (
    "kill web", "kill web", "kill store", "empty store", "stale store", "cut", "cut one way", "freeze web",
    "freeze store", "clock jump", "close", "close", "slow link", "power store",
)  # fmt: skip
WIDE_KINDS: Final = (
    *KINDS, "partition", "partition", "partition", "evict", "evict", "flush", "read-only store", "full store",
    "freeze web",
)  # fmt: skip
"""Those of the wide histories: what befalls groups and single keys."""
LISTS_KINDS: Final = (*WIDE_KINDS, "add server", "remove server", "add server", "remove server")
CLOCKS_KINDS: Final = (
    "web clock",
    "web clock",
    "store clock",
    "kill web",
    "kill store",
    "cut",
    "freeze web",
    "partition",
)
DOOR_KINDS: Final = (
    "kill director", "freeze director", "cut door", "cut door", "cut door one way", "slow door", "slow client",
    "web dies", "web dies", "kill web", "freeze web", "freeze web", "kill store", "cut", "partition", "close",
)  # fmt: skip
"""What befalls a director, the web servers behind it, and the ways to and from it."""
BY_DAMAGE: Final = {
    "narrow": KINDS, "wide": WIDE_KINDS, "lists": LISTS_KINDS, "clocks": CLOCKS_KINDS, "door": DOOR_KINDS,
    "deaths": ("web dies",),
}  # fmt: skip
HOUR_MS: Final = 3_600_000
STEP_S: Final = 1.5
"""A web server learns a changed list of session servers up to so much later than the one before."""
GIVE_UP_S: Final = 3.0
"""A session server that is off every list is shut down so much later."""
MOST_SERVERS: Final = 6
SLOW_BYTES_PER_S: Final = 2_000.0


class Deviation(msgspec.Struct, frozen=True):
    """One fault of a history. ``name`` is what it is left out, or kept, by."""

    name: str
    at: float
    kind: str


def forecast(seed: int, faults: int, span_s: float, kinds: tuple[str, ...], also: list[str]) -> list[Deviation]:
    """The faults of a seed, by time."""
    dice = Random(f"weather {seed}")
    drawn = [(dice.random() * span_s, dice.choice(kinds)) for _ in range(faults)]
    drawn += [(dice.random() * span_s, kind) for kind in also]
    drawn.sort()
    return [Deviation(f"fault-{number + 1}", at, kind) for number, (at, kind) in enumerate(drawn)]


class Weather:
    """Does damage to a site, and mends it again."""

    def __init__(self, site: Site, wants: Callable[[str], bool]) -> None:
        self._site = site
        self._faults = SiteFaults(site)
        self._wants = wants
        self._lasting: dict[int, AbstractContextManager[None]] = {}
        self._guards = 0
        self._stopped = False
        self._changing = False
        self._added = 0
        self._wrong_ms = 0
        """By how much the one clock is wrong that is wrong by hours now."""

    def plan(self) -> list[Deviation]:
        """Schedule what the seed draws and the history wants; answers all that was drawn."""
        scenario, schedule = self._site.scenario, self._site.schedule
        span = min(SPAN_S, max(0.3, scenario.requests * scenario.gap_s))
        kinds = BY_DAMAGE[scenario.damage]
        kinds = (*kinds, *["close"] * len(kinds)) if scenario.closes else kinds
        also = ["steal"] if scenario.thief else []
        if scenario.faultless and Random(f"close {scenario.seed}").random() < 0.3:
            also.append("close")
        drawn = forecast(scenario.seed, scenario.faults, span, kinds, also)
        for one in drawn:
            if self._wants(one.name):
                schedule.after(one.at, self._strike, one)
        return drawn

    # -- one fault ---------------------------------------------------------------------------------

    def _strike(self, one: Deviation) -> None:
        if self._stopped:
            return
        site, dice, kind = self._site, Random(f"{one.name} {self._site.scenario.seed}"), one.kind
        web = dice.randrange(len(site.webs))
        store = dice.choice(site.placement.servers)
        length = dice.choice((0.05, 0.5, 2.5, 6.0)) * (0.5 + dice.random())
        if site.trace.on:
            site.ledger.say(f"FAULT {one.name} {kind}: {site.webs[web].name} / {store}, {length:.2f} s")
        act = getattr(self, "_" + kind.replace(" ", "_").replace("-", "_"))
        act(dice, web, store, length)

    def _hold(self, guard: AbstractContextManager[None], length: float) -> None:
        """Let a fault last for so long."""
        self._guards += 1
        number = self._guards
        self._lasting[number] = guard
        guard.__enter__()
        self._site.schedule.after(length, self._release, number)

    def _release(self, number: int) -> None:
        guard = self._lasting.pop(number, None)
        if guard is not None:
            guard.__exit__(None, None, None)

    def _kill_web(self, dice: Random, web: int, store: str, length: float) -> None:
        if self._wrong_ms >= 0:
            # Who starts while one clock is behind, and hears no majority, cannot tell which: docs/protocol.md says so.
            self._hold(self._faults.web_down(web, power=dice.random() < 0.2), length)

    def _web_dies(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.web_down(web, told=dice.random() < 0.5), length)

    def _kill_director(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.director_down(), length)

    def _freeze_director(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._director()), length)

    def _cut_door(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut(self._door(web)), length)

    def _cut_door_one_way(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut([self._door(web)[dice.randrange(2)]]), length)

    def _slow_door(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.slow(self._door(web), SLOW_BYTES_PER_S), length)

    def _slow_client(self, dice: Random, web: int, store: str, length: float) -> None:
        browser = dice.choice(self._site.browsers)
        links = self._faults.between(browser.name, self._director().name)
        self._hold(self._faults.slow(links, SLOW_BYTES_PER_S), length)

    def _door(self, web: int) -> list[Link]:
        return self._faults.between(self._site.webs[web].name, self._director().name)

    def _director(self) -> DirectorHost:
        assert self._site.front is not None
        return self._site.front.director

    def _kill_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.store_down(store), length)

    def _power_store(self, dice: Random, web: int, store: str, length: float) -> None:
        comes_back = dice.choice(("whole", "empty", "stale"))
        self._hold(self._faults.store_down(store, comes_back, dice.randint(1, 8), power=True), length)

    def _empty_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.store_down(store, "empty"), length)

    def _stale_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.store_down(store, "stale", dice.randint(1, 8)), length)

    def _cut(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut(self._faults.between(self._site.webs[web].name, store)), length)

    def _cut_one_way(self, dice: Random, web: int, store: str, length: float) -> None:
        links = self._faults.between(self._site.webs[web].name, store)
        self._hold(self._faults.cut([links[dice.randrange(2)]]), length)

    def _partition(self, dice: Random, web: int, store: str, length: float, again: int | None = None) -> None:
        """Two camps of web and session servers; nothing passes between them. Later it may tear along another line."""
        if self._stopped:
            return
        site = self._site
        again = dice.choice((0, 0, 1, 2)) if again is None else again
        names = self._faults.names()
        camp = [name for name in names if dice.random() < 0.5]
        if site.trace.on:
            rest = [name for name in names if name not in camp]
            site.ledger.say(f"camps: {', '.join(camp)} | {', '.join(rest)}")
        self._hold(self._faults.cut(self._faults.across(camp)), length)
        if again:
            site.schedule.after(length + dice.random(), self._partition, dice, web, store, length, again - 1)

    def _slow_link(self, dice: Random, web: int, store: str, length: float) -> None:
        links = self._faults.between(self._site.webs[web].name, store)
        self._hold(self._faults.slow(links, SLOW_BYTES_PER_S), length)

    def _freeze_web(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._site.webs[web]), length)

    def _freeze_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._site.servers[store]), length)

    def _read_only_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.refuses_writes(store), length)

    def _full_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.full(store), length)

    def _evict(self, dice: Random, web: int, store: str, length: float) -> None:
        keys = self._site.servers[store].entries
        if keys:
            self._site.servers[store].forget([dice.choice(keys)])

    def _flush(self, dice: Random, web: int, store: str, length: float) -> None:
        self._site.servers[store].forget()

    def _close(self, dice: Random, web: int, store: str, length: float) -> None:
        if self._site.ledger.logs:
            self._site.close_by_operator(web, dice.choice(list(self._site.ledger.logs)))

    def _steal(self, dice: Random, web: int, store: str, length: float) -> None:
        self._site.steal()

    # -- clocks ------------------------------------------------------------------------------------

    def _clock_jump(self, dice: Random, web: int, store: str, length: float) -> None:
        site = self._site
        jump = int((dice.random() - 0.5) * 4_000)
        site.skews_ms[web] += jump
        site.webs[web].machine.skew_ms += jump
        skews = [*site.skews_ms, 0]
        site.ledger.skew_range_ms = max(site.ledger.skew_range_ms, max(skews) - min(skews)) + abs(jump)

    def _web_clock(self, dice: Random, web: int, store: str, length: float) -> None:
        self._set_wrong(self._site.webs[web], dice, length)

    def _store_clock(self, dice: Random, web: int, store: str, length: float) -> None:
        self._set_wrong(self._site.servers[store], dice, length)

    def _set_wrong(self, host: WebHost | SessionHost, dice: Random, length: float) -> None:
        """One clock is set wrong by hours, and right again. The others do not let themselves be misled: what the judge
        allows for differences between clocks does not grow."""
        if self._wrong_ms:
            return
        self._wrong_ms = dice.choice((-1, 1)) * int(HOUR_MS * (1 + 4 * dice.random()))
        if self._site.trace.on:
            self._site.ledger.say(f"the clock of {host.name} jumps by {self._wrong_ms / HOUR_MS:+.1f} h")
        self._hold(self._only_wrong(self._faults.wrong_clock(host, self._wrong_ms)), length)

    def _only_wrong(self, guard: AbstractContextManager[None]) -> AbstractContextManager[None]:
        return _Then(guard, self._is_right)

    def _is_right(self) -> None:
        self._wrong_ms = 0

    # -- the list of session servers ---------------------------------------------------------------

    def _add_server(self, dice: Random, web: int, store: str, length: float) -> None:
        self._change_list(dice, None)

    def _remove_server(self, dice: Random, web: int, store: str, length: float) -> None:
        self._change_list(dice, store)

    def _change_list(self, dice: Random, remove: str | None) -> None:
        """One server more or less, one change at a time; the web servers are restarted with the new list in turn."""
        site = self._site
        servers = list(site.placement.servers)
        if self._changing or (remove is None and len(servers) >= MOST_SERVERS):
            return
        if remove is None:
            self._added += 1
            name = f"added-{self._added}"
            site.servers[name] = site.new_server(name)
            servers.append(name)
        elif len(servers) > max(1, site.scenario.wanted):
            servers.remove(remove)
            site.ledger.given_up(site.servers[remove])
        else:
            return
        self._changing = True
        number = (site.placement.list_number + 1) % (MAX_LIST_NUMBER + 1)
        site.placement = Placement(servers, site.scenario.copies, number)
        site.ledger.list_changed(site.placement)
        if site.trace.on:
            site.ledger.say(f"the list of session servers becomes {servers}")
        delay_s = 0.0
        for index in dice.sample(range(len(site.webs)), len(site.webs)):
            delay_s += dice.random() * STEP_S
            site.schedule.after(delay_s, site.change_list, index, site.placement)
        site.schedule.after(delay_s + GIVE_UP_S, self._changed, remove)

    def _changed(self, removed: str | None) -> None:
        self._changing = False
        if removed is not None:
            self._site.servers.pop(removed).kill()

    # -- the end of all faults ---------------------------------------------------------------------

    def stop(self) -> None:
        """No more faults; everything heals."""
        site, wire = self._site, self._site.world.wire
        self._stopped = True
        wire.loss = wire.fragmentation = wire.lateness = 0.0
        site.lost_responses = site.lost_notices = site.cancelled = 0.0
        if site.trace.on:
            site.ledger.say("faults stop, everything heals")
        for number in list(self._lasting):
            self._release(number)
        site.calm_since = site.schedule.now


class _Then:
    """A guard after which something else is done."""

    def __init__(self, guard: AbstractContextManager[None], then: Callable[[], None]) -> None:
        self._guard = guard
        self._then = then

    def __enter__(self) -> None:
        self._guard.__enter__()

    def __exit__(self, *error: object) -> None:
        self._guard.__exit__(None, None, None)
        self._then()
