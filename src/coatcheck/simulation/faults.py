"""What goes wrong, and when: drawn from the seed."""

from __future__ import annotations

from coatcheck.simulation.farm import Farm

SPAN_S = 6.0
KINDS = (
    "kill web", "kill web", "kill store", "empty store", "stale store", "cut", "cut one way", "freeze web",
    "freeze store", "clock jump", "close", "close",
)  # fmt: skip


class Faults:
    """Does damage to a farm, and mends it again."""

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._stopped = False

    def plan(self) -> None:
        farm, rng = self._farm, self._farm.rng
        span = min(SPAN_S, max(0.3, farm.scenario.requests * farm.scenario.gap_s))
        kinds = (*KINDS, *["close"] * len(KINDS)) if farm.scenario.closes else KINDS
        for _ in range(farm.scenario.faults):
            farm.schedule.after(rng.random() * span, self._strike, rng.choice(kinds))
        if farm.scenario.thief:
            farm.schedule.after(rng.random() * span, farm.steal)
        if farm.scenario.faultless and rng.random() < 0.3:
            farm.schedule.after(rng.random() * span, self._strike, "close")

    def _strike(self, kind: str) -> None:
        if self._stopped:
            return
        farm, rng = self._farm, self._farm.rng
        web = rng.randrange(len(farm.webs))
        store = rng.choice(farm.placement.servers)
        length = rng.choice((0.05, 0.5, 2.5, 6.0)) * (0.5 + rng.random())
        if farm.trace.on:
            farm.ledger.say(f"FAULT {kind}: {farm.webs[web].name} / {store}, {length:.2f} s")
        if kind == "kill web":
            self._kill_web(web, length)
        elif kind in ("kill store", "empty store", "stale store"):
            self._kill_store(store, kind, length)
        elif kind == "cut":
            self._cut(web, store, length, True)
        elif kind == "cut one way":
            self._cut(web, store, length, False)
        elif kind == "freeze web":
            process = farm.webs[web]
            process.freeze()
            farm.schedule.after(length, process.thaw)
        elif kind == "freeze store":
            farm.servers[store].freeze()
            farm.schedule.after(length, farm.servers[store].thaw)
        elif kind == "clock jump":
            self._jump(web)
        elif kind == "close" and farm.ledger.logs:
            farm.close_by_operator(web, rng.choice(list(farm.ledger.logs)))

    def _kill_web(self, index: int, length: float) -> None:
        farm = self._farm
        web = farm.webs[index]
        if web.alive:
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
            if (name, web.name) not in farm.network.cut:
                web.after(farm.network.LATENCY_S, web.disconnected, name)
        farm.schedule.after(length, self._restart_store, name, kind, farm.rng.randint(1, 8))

    def _restart_store(self, name: str, kind: str, puts: int) -> None:
        server = self._farm.servers[name]
        if server.alive:
            return
        server.restart()
        if kind == "empty store":
            server.forget_all()
        elif kind == "stale store":
            server.forget_some(puts)

    def _cut(self, web: int, store: str, length: float, both: bool) -> None:
        farm = self._farm
        name = farm.webs[web].name
        links = [(name, store), (store, name)]
        if not both:
            links = [links[farm.rng.randrange(2)]]
        farm.network.cut.update(links)
        farm.schedule.after(length, farm.network.cut.difference_update, links)

    def _jump(self, index: int) -> None:
        farm = self._farm
        jump = int((farm.rng.random() - 0.5) * 4_000)
        farm.skews_ms[index] += jump
        farm.webs[index].skew_ms += jump
        skews = [*farm.skews_ms, 0]
        farm.ledger.skew_range_ms = max(farm.ledger.skew_range_ms, max(skews) - min(skews)) + abs(jump)

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
        for index, web in enumerate(farm.webs):
            web.thaw()
            farm.restart_web(index)
