"""A farm of two web servers and two session servers in which nothing is left to chance: every next step is chosen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Literal

from coatcheck.replication.copies import Copies
from coatcheck.simulation.application import Attempt, Cookies, Kind
from coatcheck.simulation.bare.chosen import ChosenNetwork, ChosenSchedule, Message, Timer
from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.fingerprint import LONG_PAST_S, PAST_S, Fingerprint
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.bare.web_server import ModelWebServer
from coatcheck.simulation.scenario import Scenario
from coatcheck.simulation.trace import Trace

Choice = tuple[str, Callable[[], None]]
Script = tuple[Kind | Literal["wait"], ...]
"""What the browser does, in order."""


class SmallFarm(BareFarm):
    """``script``: the requests of one browser. At most ``parallel`` of them are under way at once.

    ``disorder``: how often a message may overtake others. ``faults``: how many faults there may be. ``cuts``: the
    faults are cuts between web and session servers, and session servers restarted without their data.
    """

    PASSES = 2
    """How often a lease passes in which every link is heard: then one goes on, and once more."""
    WAIT_S = 1000.0
    """How long the browser does nothing where its script says "wait"."""

    def __init__(
        self,
        scenario: Scenario,
        script: Script,
        faults: int,
        disorder: int,
        trace: Trace,
        parallel: int,
        cuts: bool = False,
    ) -> None:
        self.chosen = ChosenSchedule()
        self.flying = ChosenNetwork(scenario.ordered)
        super().__init__(scenario, trace, self.chosen, self.flying)
        self.script = script
        self.position = 0
        self.passes = self.PASSES if scenario.ordered else 0
        self.disorder = self.disorder_given = disorder
        self.budget = self.budget_given = faults
        self.parallel = parallel
        self.cuts = cuts
        self.ledger.disturbed = True
        self.browser = self.browsers[0]
        self._begin()

    def start_web(self, web: ModelWebServer) -> None:
        own = Random(f"{web.name} run {web.run}")
        web.random_bytes = own.randbytes
        web.jitter = lambda: 0.5
        del self.by_id[web.server_id]
        web.equip(own.randbytes(3), self.placement, self.replication, self.policy)
        self.by_id[web.server_id] = web
        web.lines = None  # what is on its way is chosen here, in order too
        self.trace.name_server(web.server_id, web.name if not web.run else f"{web.name}#{web.run}")

    def _begin(self) -> None:
        """The session exists and is hosted on the first web server."""
        self._request("write", 0)
        while self.flying.messages:
            self._deliver(0)

    def _request(self, kind: Kind, web: int) -> None:
        jar = self.browser.jar
        attempt = Attempt(self.next_number(), kind, self.browser, Cookies(jar.anonymous, jar.login), self.schedule.now)
        self.browser.outstanding[attempt] = None
        attempt.web = self.webs[web]
        self._in_hand[attempt] = None
        self._hand_over(attempt, self.webs[web], 0.0)
        self.chosen.settle()

    def _choose(self, index: int) -> None:
        self.disorder -= index > 0
        self._deliver(index)

    def _deliver(self, index: int) -> None:
        message = self.flying.messages.pop(index)
        message.to.deliver(message.act, *message.args)
        self.chosen.settle()

    # -- what can happen next --------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """Every possible next step, the undisturbed ones first."""
        self.chosen.forget_idle()
        self.chosen.timers = [timer for timer in self.chosen.timers if not self._is_vain(timer)]
        found: list[Choice] = []
        messages = self.flying.messages
        for index, message in enumerate(messages):
            if not index or self.disorder:
                found.append((f"deliver {message.label}", lambda index=index: self._choose(index)))  # type: ignore[misc]
        kind = self.script[self.position] if self.position < len(self.script) else None
        if kind == "wait":
            if not messages and not self.browser.outstanding:
                found.append(("the browser waits", self._wait_long))
        elif kind is not None and len(self.browser.outstanding) < self.parallel:
            webs = range(len(self.webs))
            found += [(f"request {kind} to web-{web + 1}", partial(self._next_request, web)) for web in webs]
        if not messages and self.chosen.timers:
            found.append(("time passes", self._tick))
        if not messages and not self.chosen.timers and self._leased():
            found.append(("leases run out", self._wait))
        if self.passes and not self.chosen.timers and self._prolonged():
            found.append(("a lease passes, and all links are heard", self._hear))
        if self.flying.cut:
            found.append(("the cuts heal", self._mend_cuts))
        if self.budget > 0:
            found += self._cuts() if self.cuts else self._faults()
        return found

    def _next_request(self, web: int) -> None:
        kind = self.script[self.position]
        assert kind != "wait"
        self.position += 1
        self._request(kind, web)

    def _wait_long(self) -> None:
        self.position += 1
        self.chosen.now += self.WAIT_S
        self.chosen.settle()

    def _tick(self) -> None:
        self.chosen.fire_next()
        self.chosen.settle()

    def _leased(self) -> bool:
        busy = self.position < len(self.script)
        return busy and any(copy.lease_until > self.schedule.now for web in self.webs for copy in web.copies.cache)

    def _wait(self) -> None:
        self.chosen.now += self.scenario.lease_s + 0.1

    def _prolonged(self) -> bool:
        """Whether a lease may go on, and there is a request to come."""
        busy = self.position < len(self.script)
        return busy and any(web.copies.leased_until(copy) for web in self.webs for copy in web.copies.cache)

    def _hear(self) -> None:
        """Each web server hears each session server that it reaches, and first what that had sent before."""
        self.passes -= 1
        self._wait()
        now = self.schedule.now
        for web in self.webs:
            for name in [name for name, up in web.reach.items() if up]:
                self.flying.hand_over(name, web)
                web.beats[name] = now
                web.copies.links.heard(name, now)
        self.chosen.settle()

    def _cuts(self) -> list[Choice]:
        """Partitions: each session server is left to one web server. Cuts of a single link. Restarts."""
        found: list[Choice] = []
        names = list(self.servers)
        for kept in range(1, 1 << len(names)):
            mine = {name for place, name in enumerate(names) if kept >> place & 1}
            lost = [(0, name) for name in names if name not in mine] + [(1, name) for name in sorted(mine)]
            label = f"FAULT cut in two: {self.webs[0].name} keeps {', '.join(sorted(mine))}"
            found.append((label, lambda lost=lost: self._cut(lost)))  # type: ignore[misc]
        for index, web in enumerate(self.webs):
            for name in names:
                if (web.name, name) not in self.flying.cut:
                    label = f"FAULT cut {web.name} from {name}"
                    found.append((label, lambda index=index, name=name: self._cut([(index, name)])))  # type: ignore[misc]
        return found + self._restarts()

    def _cut(self, links: list[tuple[int, str]]) -> None:
        """Nothing passes any more, either way; both ends notice."""
        self.budget -= 1
        for index, name in links:
            web = self.webs[index]
            self.flying.cut |= {(web.name, name), (name, web.name)}
            self.flying.messages = [one for one in self.flying.messages if not _crosses(one, web, self.servers[name])]
            web.disconnected(name)
        self.chosen.settle()

    def _is_vain(self, timer: Timer) -> bool:
        """Whether a web server would only find out once more that it is cut off."""
        probe, *rest = timer[3] or (None,)
        if getattr(probe, "__func__", None) is not ModelWebServer._probe:
            return False
        return (probe.__self__.name, rest[0]) in self.flying.cut

    def _mend_cuts(self) -> None:
        self.flying.cut.clear()
        for web in self.webs:
            for name in [name for name, up in web.reach.items() if not up]:
                web._probe(name)
        self.chosen.settle()

    def _faults(self) -> list[Choice]:
        found: list[Choice] = []
        for index, message in enumerate(self.flying.messages):
            found.append((f"FAULT lose {message.label}", lambda index=index: self._lose(index)))  # type: ignore[misc]
            if isinstance(message.to, ModelSessionServer):
                found.append((f"FAULT lose the reply to {message.label}", lambda index=index: self._lose_reply(index)))  # type: ignore[misc]
                found.append((f"FAULT duplicate {message.label}", lambda index=index: self._duplicate(index)))  # type: ignore[misc]
        if self.flying.messages and self.chosen.timers:
            found.append(("FAULT messages are late", self._late))
        for index, web in enumerate(self.webs):
            found.append((f"FAULT kill {web.name}", lambda index=index: self._kill(index)))  # type: ignore[misc]
        return found + self._restarts()

    def _restarts(self) -> list[Choice]:
        found: list[Choice] = []
        for name, server in self.servers.items():
            if server.entries:
                found.append((f"FAULT {name} restarts empty", lambda server=server: self._restart(server, 0)))  # type: ignore[misc]
                found.append((f"FAULT {name} restarts stale", lambda server=server: self._restart(server, 1)))  # type: ignore[misc]
        return found

    def _lose(self, index: int) -> None:
        self.budget -= 1
        message = self.flying.messages.pop(index)
        sender = message.label.partition(" ")[0]
        if self.scenario.ordered and sender in self.servers and isinstance(message.to, ModelWebServer):
            message.to.disconnected(sender)  # nothing follows what is lost

    def _lose_reply(self, index: int) -> None:
        self.budget -= 1
        self.flying.lose_reply = True
        self._deliver(index)
        self.flying.lose_reply = False

    def _duplicate(self, index: int) -> None:
        self.budget -= 1
        self.flying.messages.append(self.flying.messages[index])
        self._deliver(index)

    def _late(self) -> None:
        self.budget -= 1
        self._tick()

    def _kill(self, index: int) -> None:
        self.budget -= 1
        web = self.webs[index]
        web.kill()
        self.web_died(web)
        self.flying.messages = [one for one in self.flying.messages if one.to is not web]
        self.restart_web(index)
        self.chosen.settle()

    def _restart(self, server: ModelSessionServer, puts: int) -> None:
        """Connections break; what was on its way to the server may still come."""
        self.budget -= 1
        if puts:
            server.restart_stale(puts)
        else:
            server.restart_empty()
        for web in self.webs:
            web.disconnected(server.name)
        self.chosen.settle()

    # -- the end -----------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything settles; then both web servers look through all that is stored, twice."""
        self._mend_cuts()
        self._drain()
        for _ in range(2):
            for web in self.webs:
                keys = dict.fromkeys(key for server in self.servers.values() for key in server.entries)
                for key in [*keys, *web.needing_repair()]:
                    web.repair_one(key)
                self._drain()

    def _drain(self) -> None:
        for _ in range(1000):
            self.chosen.settle()
            self.chosen.forget_idle()
            if self.flying.messages:
                self._deliver(0)
            elif self.chosen.timers:
                self._tick()
            else:
                return

    def _waited(self, copies: Copies) -> Any:
        """How long browsers have waited, where that decides anything."""
        absences = copies.viewer.absences
        return (absences._away_since, absences._unheard) if self.scenario.patience_s else ()

    def _heard(self, copies: Copies) -> Any:
        """What says whether leases go on, where they do."""
        if not self.scenario.ordered:
            return ()
        return copies.links.heard_until, copies._leases_from, copies.puts._no_lease_before

    def fingerprint(self) -> int:
        """The state: what servers hold, what flies, where every flow stands, and what was promised."""
        now = self.schedule.now
        webs = []
        for web in self.webs:
            copies = web.copies
            webs.append((
                web.run, list(copies.cache), copies.cache._closed, copies.cache._spent, copies.closing,
                copies._tried, copies._claiming,
                sorted(copies.under_replicated), web.reach, list(web.runner.running),
                self._waited(copies), self._heard(copies),
                [(turns.busy, list(turns.waiting)) for turns in web.runner.turns.values()],
            ))  # fmt: skip
        servers = [
            ({key: row[0] for key, row in server.entries.items()}, server._undo[-1:], server.run)
            for server in self.servers.values()
        ]
        flying = [(one.to, one.act, one.args) for one in self.flying.messages]
        timers = [(due, act, args) for due, _, act, args in sorted(self.chosen.timers, key=lambda one: one[:2])]
        logs = [
            (
                key,
                list(log.acks),
                [(close.holders, close.lost) for close in log.closes],
                log.forked_by,
                list(log.forgotten),
                log.once_lost,
                log.out_of_sight,
                log.lost,
                list(log.forked_away),
                log.willed,
            )
            for key, log in self.ledger.logs.items()
        ]
        jar = self.browser.jar
        mine = (
            self.position,
            self.passes,
            self.budget,
            self.disorder,
            jar.anonymous,
            jar.login,
            [one.number for one in self.browser.outstanding],
        )
        past_s = LONG_PAST_S if "wait" in self.script else PAST_S
        return Fingerprint(now, past_s).digest((webs, servers, flying, timers, logs, mine, sorted(self.flying.cut)))


def _crosses(message: Message, web: ModelWebServer, server: ModelSessionServer) -> bool:
    """Whether a message is under way between the two. (One from a session server says so in its label.)"""
    return (message.to is server and message.label.startswith(f"{web.name} ")) or (
        message.to is web and message.label.startswith(f"{server.name} ")
    )
