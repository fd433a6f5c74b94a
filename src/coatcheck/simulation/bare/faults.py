"""What goes wrong, and when: drawn from the seed."""

from __future__ import annotations

from coatcheck.replication.placement import MAX_LIST_NUMBER, Placement
from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.bare.web_server import ModelWebServer

SPAN_S = 6.0
KINDS = (
    "kill web", "kill web", "kill store", "empty store", "stale store", "cut", "cut one way", "freeze web",
    "freeze store", "clock jump", "close", "close",
)  # fmt: skip
WIDE_KINDS = (
    *KINDS, "partition", "partition", "partition", "evict", "evict", "flush", "read-only store", "read-only store",
    "freeze web",
)  # fmt: skip
"""Those of the wide histories: what befalls groups and single keys."""
LISTS_KINDS = (*WIDE_KINDS, "add server", "remove server", "add server", "remove server")
CLOCKS_KINDS = ("web clock", "web clock", "store clock", "kill web", "kill store", "cut", "freeze web", "partition")
BY_DAMAGE = {
    "narrow": KINDS, "wide": WIDE_KINDS, "lists": LISTS_KINDS, "clocks": CLOCKS_KINDS, "door": KINDS,
    "deaths": ("kill web",),
}  # fmt: skip
HOUR_MS = 3_600_000
WATCH_S = 0.15
"""The heart-beat of a web server runs for so long before it is frozen."""
STEP_S = 1.5
"""A web server learns a changed list of session servers up to so much later than the one before."""
GIVE_UP_S = 3.0
"""A session server that is off every list is shut down so much later."""
MOST_SERVERS = 6


class Faults:
    """Does damage to a farm, and mends it again."""

    def __init__(self, farm: BareFarm) -> None:
        self._farm = farm
        self._stopped = False
        self._changing = False
        self._added = 0
        self._wrong: ModelWebServer | ModelSessionServer | None = None
        self._wrong_ms = 0
        """By how much the one clock is wrong that is wrong by hours now."""

    def plan(self) -> None:
        farm, rng = self._farm, self._farm.dice
        span = min(SPAN_S, max(0.3, farm.scenario.requests * farm.scenario.gap_s))
        kinds = BY_DAMAGE[farm.scenario.damage]
        kinds = (*kinds, *["close"] * len(kinds)) if farm.scenario.closes else kinds
        for _ in range(farm.scenario.faults):
            farm.schedule.after(rng.random() * span, self._strike, rng.choice(kinds))
        if farm.scenario.thief:
            farm.schedule.after(rng.random() * span, farm.steal)
        if farm.scenario.faultless and rng.random() < 0.3:
            farm.schedule.after(rng.random() * span, self._strike, "close")

    def _strike(self, kind: str) -> None:
        if self._stopped:
            return
        farm, rng = self._farm, self._farm.dice
        web = rng.randrange(len(farm.webs))
        store = rng.choice(farm.placement.servers)
        length = rng.choice((0.05, 0.5, 2.5, 6.0)) * (0.5 + rng.random())
        if farm.trace.on:
            farm.ledger.say(f"FAULT {kind}: {farm.webs[web].name} / {store}, {length:.2f} s")
        if kind == "kill web":
            self._kill_web(web, length)
        elif kind in ("kill store", "empty store", "stale store"):
            self._kill_store(store, kind, length)
        elif kind in ("cut", "cut one way"):
            self._cut(web, store, length, kind == "cut")
        elif kind == "partition":
            self._partition(length, rng.choice((0, 0, 1, 2)))
        elif kind == "freeze web":
            farm.webs[web].watch_for_stalls()
            farm.schedule.after(WATCH_S, self._freeze_web, web, length)
        elif kind == "freeze store":
            farm.servers[store].freeze()
            farm.schedule.after(length, farm.servers[store].thaw)
        elif kind == "clock jump":
            self._jump(web)
        elif kind in ("web clock", "store clock"):
            self._set_wrong(farm.webs[web] if kind == "web clock" else farm.servers[store], length)
        elif kind == "close":
            if farm.ledger.logs:
                farm.close_by_operator(web, rng.choice(list(farm.ledger.logs)))
        else:
            self._strike_store(kind, store, length)

    def _strike_store(self, kind: str, name: str, length: float) -> None:
        """What befalls the data of a session server, or its place on the list; no connection breaks."""
        farm, rng = self._farm, self._farm.dice
        server = farm.servers[name]
        if kind == "evict" and server.entries:
            server.forget([rng.choice(list(server.entries))])
        elif kind == "flush":
            server.forget()
        elif kind == "read-only store":
            server.read_only = True
            farm.schedule.after(length, self._writable, name)
        elif kind in ("add server", "remove server"):
            self._change_list(None if kind == "add server" else name)

    def _freeze_web(self, index: int, length: float) -> None:
        web = self._farm.webs[index]
        if not self._stopped and web.alive and web.is_watched:
            web.freeze()
            self._farm.schedule.after(length, web.thaw)

    def _kill_web(self, index: int, length: float) -> None:
        farm = self._farm
        web = farm.webs[index]
        if web.alive and self._wrong_ms >= 0:
            # Who starts while one clock is behind, and hears no majority, cannot tell which: docs/protocol.md says so.
            web.kill()
            farm.web_died(web)
            farm.schedule.after(length, farm.restart_web, index)

    def _kill_store(self, name: str, kind: str, length: float) -> None:
        farm = self._farm
        server = farm.servers[name]
        if not server.alive:
            return
        server.kill()
        for web in farm.webs:
            if name in web.servers and (name, web.name) not in farm.network.cut:
                web.after(farm.network.LATENCY_S, web.disconnected, name)
        farm.schedule.after(length, self._restart_store, name, kind, farm.dice.randint(1, 8))

    def _restart_store(self, name: str, kind: str, puts: int) -> None:
        server = self._farm.servers.get(name)
        if server is None or server.alive:
            return
        if kind == "empty store":
            server.restart_empty()
        elif kind == "stale store":
            server.restart_stale(puts)
        else:
            server.restart()

    def _writable(self, name: str) -> None:
        if name in self._farm.servers:
            self._farm.servers[name].read_only = False

    # -- the network -----------------------------------------------------------------------------

    def _cut(self, web: int, store: str, length: float, both: bool) -> None:
        farm = self._farm
        name = farm.webs[web].name
        links = [(name, store), (store, name)]
        if not both:
            links = [links[farm.dice.randrange(2)]]
        farm.network.cut.update(links)
        farm.schedule.after(length, farm.network.cut.difference_update, links)

    def _partition(self, length: float, again: int) -> None:
        """Two camps of web and session servers; nothing passes between them. Later it may tear along another line."""
        if self._stopped:
            return
        farm, rng = self._farm, self._farm.dice
        names = [*farm.servers, *(web.name for web in farm.webs)]
        camps = {name: rng.random() < 0.5 for name in names}
        links = [(one, other) for one in names for other in names if camps[one] != camps[other]]
        if farm.trace.on:
            sides = [", ".join(name for name in names if camps[name] is side) for side in (True, False)]
            farm.ledger.say(f"camps: {sides[0]} | {sides[1]}")
        farm.network.cut.update(links)
        farm.schedule.after(length, farm.network.cut.difference_update, links)
        if again:
            farm.schedule.after(length + rng.random(), self._partition, length, again - 1)

    # -- the list of session servers -------------------------------------------------------------

    def _change_list(self, remove: str | None) -> None:
        """One server more or less, one change at a time; the web servers are restarted with the new list in turn."""
        farm, rng = self._farm, self._farm.dice
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
        for index in rng.sample(range(len(farm.webs)), len(farm.webs)):
            delay_s += rng.random() * STEP_S
            farm.schedule.after(delay_s, farm.change_list, index, farm.placement)
        farm.schedule.after(delay_s + GIVE_UP_S, self._changed, remove)

    def _changed(self, removed: str | None) -> None:
        self._changing = False
        if removed is not None:
            self._farm.servers.pop(removed).kill()

    # -- clocks ----------------------------------------------------------------------------------

    def _jump(self, index: int) -> None:
        farm = self._farm
        jump = int((farm.dice.random() - 0.5) * 4_000)
        farm.skews_ms[index] += jump
        farm.webs[index].skew_ms += jump
        skews = [*farm.skews_ms, 0]
        farm.ledger.skew_range_ms = max(farm.ledger.skew_range_ms, max(skews) - min(skews)) + abs(jump)

    def _set_wrong(self, process: ModelWebServer | ModelSessionServer, length: float) -> None:
        """One clock is set wrong by hours, and right again. The others do not let themselves be misled: what the judge
        allows for differences between clocks does not grow."""
        if self._wrong_ms or self._stopped:
            return
        rng = self._farm.dice
        self._wrong_ms = rng.choice((-1, 1)) * int(HOUR_MS * (1 + 4 * rng.random()))
        self._wrong = process
        self._set_clock(process, self._wrong_ms)
        self._farm.schedule.after(length, self._set_right, process)

    def _set_right(self, process: ModelWebServer | ModelSessionServer) -> None:
        if self._wrong is process:
            self._set_clock(process, -self._wrong_ms)
            self._wrong, self._wrong_ms = None, 0

    def _set_clock(self, process: ModelWebServer | ModelSessionServer, by_ms: int) -> None:
        if self._farm.trace.on:
            self._farm.ledger.say(f"the clock of {process.name} jumps by {by_ms / HOUR_MS:+.1f} h")
        if isinstance(process, ModelSessionServer):
            process.jump(by_ms)
        else:
            process.skew_ms += by_ms

    def stop(self) -> None:
        """No more faults; everything heals."""
        farm = self._farm
        self._stopped = True
        farm.network.heal()
        farm.lost_responses = farm.lost_notices = farm.cancelled = 0.0
        if farm.trace.on:
            farm.ledger.say("faults stop, everything heals")
        for server in farm.servers.values():
            if not server.alive:
                server.restart()
            server.thaw()
            server.read_only = False
        if self._wrong is not None:
            self._set_right(self._wrong)
        for index, web in enumerate(farm.webs):
            web.thaw()
            farm.restart_web(index)
