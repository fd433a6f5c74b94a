"""What goes wrong in a history, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any, Final

from coatcheck.replication.placement import MAX_LIST_NUMBER, Placement
from coatcheck.simulation.farm import Farm
from coatcheck.simulation.faults import Faults, Host
from coatcheck.simulation.scenario import Damage

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


class Weather(ABC):
    """Does damage to a farm, and mends it again."""

    def __init__(self, farm: Farm[Any, Any], faults: Faults) -> None:
        self._farm = farm
        self._faults = faults
        self._lasting: dict[int, AbstractContextManager[None]] = {}
        self._guards = 0
        self._stopped = False
        self._changing = False
        self._added = 0
        self._wrong = self._wrong_ms = 0
        """Which guard is the one clock that is wrong by hours now, and by how much that is."""

    @abstractmethod
    def plan(self) -> None:
        """Schedule what the seed draws."""

    def span_s(self) -> float:
        """For how long something may begin to go wrong."""
        scenario = self._farm.scenario
        return min(SPAN_S, max(0.3, scenario.requests * scenario.gap_s))

    def kinds(self) -> tuple[str, ...]:
        """What is drawn from."""
        kinds = self._kinds_of(self._farm.scenario.damage)
        return (*kinds, *["close"] * len(kinds)) if self._farm.scenario.closes else kinds

    def _kinds_of(self, damage: Damage) -> tuple[str, ...]:
        return BY_DAMAGE[damage]

    # -- one fault ---------------------------------------------------------------------------------

    def _strike(self, kind: str, dice: Random, label: str) -> None:
        if self._stopped:
            return
        farm = self._farm
        web = dice.randrange(len(farm.webs))
        store = dice.choice(farm.placement.servers)
        length = dice.choice((0.05, 0.5, 2.5, 6.0)) * (0.5 + dice.random())
        if farm.trace.on:
            farm.ledger.say(f"FAULT {label}: {farm.webs[web].name} / {store}, {length:.2f} s")
        act = getattr(self, "_" + kind.replace(" ", "_").replace("-", "_"))
        act(dice, web, store, length)

    def _hold(self, guard: AbstractContextManager[None], length: float) -> int:
        """Let a fault last for so long."""
        self._guards += 1
        number = self._guards
        self._lasting[number] = guard
        guard.__enter__()
        self._farm.schedule.after(length, self._release, number)
        return number

    def _release(self, number: int) -> None:
        guard = self._lasting.pop(number, None)
        if guard is not None:
            guard.__exit__(None, None, None)

    def _kill_web(self, dice: Random, web: int, store: str, length: float) -> None:
        if self._wrong_ms >= 0:
            # Who starts while one clock is behind, and hears no majority, cannot tell which: docs/protocol.md says so.
            self._hold(self._web_down(dice, web), length)

    def _web_down(self, dice: Random, web: int) -> AbstractContextManager[None]:
        return self._faults.web_down(web)

    def _kill_store(self, dice: Random, web: int, store: str, length: float, comes_back: str = "whole") -> None:
        if self._farm.servers[store].alive:
            self._hold(self._faults.store_down(store, comes_back, dice.randint(1, 8)), length)

    def _empty_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._kill_store(dice, web, store, length, "empty")

    def _stale_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._kill_store(dice, web, store, length, "stale")

    def _cut(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.cut(self._faults.between(self._farm.webs[web].name, store)), length)

    def _cut_one_way(self, dice: Random, web: int, store: str, length: float) -> None:
        links = self._faults.between(self._farm.webs[web].name, store)
        self._hold(self._faults.cut([links[dice.randrange(2)]]), length)

    def _partition(self, dice: Random, web: int, store: str, length: float, again: int | None = None) -> None:
        """Two camps of web and session servers; nothing passes between them. Later it may tear along another line."""
        if self._stopped:
            return
        farm = self._farm
        again = dice.choice((0, 0, 1, 2)) if again is None else again
        names = self._faults.names()
        camp = [name for name in names if dice.random() < 0.5]
        if farm.trace.on:
            rest = [name for name in names if name not in camp]
            farm.ledger.say(f"camps: {', '.join(camp)} | {', '.join(rest)}")
        self._hold(self._faults.cut(self._faults.across(camp)), length)
        if again:
            farm.schedule.after(length + dice.random(), self._partition, dice, web, store, length, again - 1)

    def _freeze_web(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._farm.webs[web]), length)

    def _freeze_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.frozen(self._farm.servers[store]), length)

    def _read_only_store(self, dice: Random, web: int, store: str, length: float) -> None:
        self._hold(self._faults.refuses_writes(store), length)

    def _evict(self, dice: Random, web: int, store: str, length: float) -> None:
        keys = self._farm.servers[store].entries
        if keys:
            self._farm.servers[store].forget([dice.choice(list(keys))])

    def _flush(self, dice: Random, web: int, store: str, length: float) -> None:
        self._farm.servers[store].forget()

    def _close(self, dice: Random, web: int, store: str, length: float) -> None:
        if self._farm.ledger.logs:
            self._farm.close_by_operator(web, dice.choice(list(self._farm.ledger.logs)))

    def _steal(self, dice: Random, web: int, store: str, length: float) -> None:
        self._farm.steal()

    # -- clocks ------------------------------------------------------------------------------------

    def _clock_jump(self, dice: Random, web: int, store: str, length: float) -> None:
        farm = self._farm
        jump = int((dice.random() - 0.5) * 4_000)
        farm.skews_ms[web] += jump
        farm.webs[web].jump(jump)
        skews = [*farm.skews_ms, 0]
        farm.ledger.skew_range_ms = max(farm.ledger.skew_range_ms, max(skews) - min(skews)) + abs(jump)

    def _web_clock(self, dice: Random, web: int, store: str, length: float) -> None:
        self._set_wrong(self._farm.webs[web], dice, length)

    def _store_clock(self, dice: Random, web: int, store: str, length: float) -> None:
        self._set_wrong(self._farm.servers[store], dice, length)

    def _set_wrong(self, host: Host, dice: Random, length: float) -> None:
        """One clock is set wrong by hours, and right again. The others do not let themselves be misled: what the judge
        allows for differences between clocks does not grow."""
        if not self._wrong_ms:
            self._wrong_ms = dice.choice((-1, 1)) * int(HOUR_MS * (1 + 4 * dice.random()))
            self._wrong = self._hold(self._only_wrong(host), length)

    @contextmanager
    def _only_wrong(self, host: Host) -> Iterator[None]:
        with self._faults.wrong_clock(host, self._wrong_ms):
            yield
        self._wrong_ms = 0

    # -- the list of session servers ---------------------------------------------------------------

    def _add_server(self, dice: Random, web: int, store: str, length: float) -> None:
        self._change_list(dice, None)

    def _remove_server(self, dice: Random, web: int, store: str, length: float) -> None:
        self._change_list(dice, store)

    def _change_list(self, dice: Random, remove: str | None) -> None:
        """One server more or less, one change at a time; the web servers are restarted with the new list in turn."""
        farm = self._farm
        servers = list(farm.placement.servers)
        if self._changing or (remove is None and len(servers) >= MOST_SERVERS):
            return
        if remove is None:
            self._added += 1
            name = f"added-{self._added}"
            farm.servers[name] = farm.new_server(name)
            servers.append(name)
        elif len(servers) > max(1, farm.scenario.wanted):
            servers.remove(remove)
            farm.ledger.given_up(farm.servers[remove])
        else:
            return
        self._changing = True
        number = (farm.placement.list_number + 1) % (MAX_LIST_NUMBER + 1)
        farm.placement = Placement(servers, farm.scenario.copies, number)
        farm.ledger.list_changed(farm.placement)
        if farm.trace.on:
            farm.ledger.say(f"the list of session servers becomes {servers}")
        delay_s = 0.0
        for index in dice.sample(range(len(farm.webs)), len(farm.webs)):
            delay_s += dice.random() * STEP_S
            farm.schedule.after(delay_s, farm.change_list, index, farm.placement)
        farm.schedule.after(delay_s + GIVE_UP_S, self._changed, remove)

    def _changed(self, removed: str | None) -> None:
        self._changing = False
        if removed is not None:
            self._farm.servers.pop(removed).kill()

    # -- the end of all faults ---------------------------------------------------------------------

    def stop(self) -> None:
        """No more faults; everything heals."""
        self._stopped = True
        self._farm.calm()
        if self._farm.trace.on:
            self._farm.ledger.say("faults stop, everything heals")
        self._mend()

    def _mend(self) -> None:
        for number in list(self._lasting):
            self._release(number)
