"""One run of a simulated web server: the product's rules in it, simulated surroundings around it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from coatcheck.errors import CoatcheckError
from coatcheck.events import Event, EventKind
from coatcheck.hand_off.rules import HandOffs
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Exclusive, Flow, Get, Put, PutItem, PutReply, TakeItem, Tell, Unreachable
from coatcheck.replication.entry import Sealer
from coatcheck.replication.farm_clock import FarmClock
from coatcheck.replication.notice import Notice, decode_message
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.repair import Repair, Repaired
from coatcheck.replication.stall_guard import StallGuard, Timer
from coatcheck.sessions.everyone import Everyone
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.users import UserIndexes
from coatcheck.simulation.application import Attempt
from coatcheck.simulation.bare.lines import Line
from coatcheck.simulation.bare.network import Network
from coatcheck.simulation.bare.runner import Collector, ItemCall, Runner, Task
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.schedule import EPOCH_MS, Act, Process, Schedule
from coatcheck.simulation.users import index_key
from coatcheck.simulation.watched import WatchedWebServer

UNREACHABLE = Unreachable("no connection")
CLOCK_PERIOD_S = 1.0


class Beat:
    """A timer of the heart-beat."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self) -> None:
        if self._act is not None:
            self._act()

    def cancel(self) -> None:
        self._act = None


class ModelWebServer(Process, WatchedWebServer):
    """Its clock may be wrong (``skew_ms``); what it hosts is gone when it dies."""

    MENDING_S = 5.0
    SETTLE_S = 0.05
    SCAN_DELAY_S = 1.0
    PROBE_S = 0.25
    TIMEOUT_S = Runner.TIMEOUT_S

    def __init__(
        self,
        name: str,
        run: int,
        schedule: Schedule,
        network: Network,
        servers: dict[str, ModelSessionServer],
        rng: Random,
        judge: Ledger,
        sealer: Sealer,
        ordered: bool = False,
    ) -> None:
        """``ordered``: each session server is behind one connection, which keeps its order."""
        Process.__init__(self, name, schedule)
        WatchedWebServer.__init__(self, name, run, servers)
        self.lines: dict[str, Line] | None = {} if ordered else None
        self.beats: dict[str, float] = {}
        """Per session server: when the newest heart-beat was sent that was answered on the present connection."""
        self.network = network
        self.servers: dict[str, ModelSessionServer] = servers
        self.judge = judge
        self.sealer = sealer
        self.random_bytes: Callable[[int], bytes] = rng.randbytes
        self.jitter: Callable[[], float] = rng.random
        self.skew_ms = 0
        self.reach = dict.fromkeys(servers, True)
        self._connected_to = {name: server.run for name, server in servers.items()}
        """Which run of each session server: a connection does not outlive the process at its other end."""
        self.runner = Runner(self)
        self.clock = FarmClock(self.monotonic, self._wall_ms, report=self._report_clock)
        self.clock.expect(len(servers))
        self._heard_at: dict[str, float] = {}
        self._guard: StallGuard | None = None
        self._mending_due = False
        self._scan_due = False
        self.hand_offs: HandOffs | None = None
        self.everyone: Everyone | None = None
        self._questions = 0
        """Whether everybody's sessions were closed; the timer of an earlier one asks nothing."""
        self._question: Task | None = None
        """The last of them, which is asked again for as long as the web server lives."""

    def equip(
        self, server_id: bytes, placement: Placement, replication: ReplicationPolicy, policy: SessionPolicy
    ) -> None:
        """Give it the product's rules."""
        self.copies = Copies(server_id, placement, replication, self.sealer, self)
        self.lifecycle = Lifecycle(self.copies, policy, self.site)
        self.repair = Repair(self.copies)

    def keep_users(self, everyone: bool) -> None:
        """Keep an index of each user, and do in the background what that asks for. ``everyone``: and ask over and over
        whether everybody's sessions were closed."""
        users = UserIndexes(self.copies, self.lifecycle.policy, lambda user: [index_key(user)])
        users.renew_ms = min(users.renew_ms, 1_000)  # histories are short
        self.lifecycle.users = users
        users.on_waiting = lambda: self.after(0.0, self._work_for, users)
        if everyone:
            self.everyone = self.lifecycle.everyone = Everyone(self.copies, users)
            self.after(0.0, self._watch_everyone, self.everyone, 0)

    def _watch_everyone(self, everyone: Everyone, number: int) -> None:
        """Ask, unless a notice has caused a later question meanwhile; the pause begins with the answer, as in the
        background of a driver."""
        if number != self._questions:
            return
        self._questions += 1

        def answered(_: Any, error: Exception | None) -> None:
            self._judge_crash(error)
            self.after(everyone.pause_s, self._watch_everyone, everyone, self._questions)

        self._question = self.runner.start(everyone.learn(), answered)

    def _work_for(self, users: UserIndexes) -> None:
        for key in users.abandoned:
            self.judge.log(key).willed = True
        while (flow := users.next_work()) is not None:
            self.runner.start(flow, lambda _, error: self._judge_crash(error))

    def begin(self) -> None:
        """Look after hosted sessions from now on, and once through what is stored."""
        for name in self.servers:
            if self.reach[name]:
                self._connect(name)
            if self._answers(name):
                self._hear(name)
        if self.lines is not None and self.copies.links.prolong:
            self.after(self.copies.links.beat_s * self.jitter(), self._beat)
        self.after(self.MENDING_S * (0.5 + self.jitter()), self._mend_regularly)
        self._alarm()

    @property
    def ready(self) -> bool:
        return self.alive

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def unfinished(self) -> list[Any]:
        return [*(task for task in self.runner.running if task is not self._question), *self.runner.turns]

    # -- surroundings ----------------------------------------------------------------------------

    def _wall_ms(self) -> float:
        """What this host's clock shows, right or wrong."""
        return EPOCH_MS + self.schedule.now * 1000 + self.skew_ms

    def _report_clock(self, name: str, deviation_ms: int) -> None:
        kind = EventKind.CLOCK_DEVIATES if deviation_ms else EventKind.CLOCK_AGREES
        self.report(Event(kind, detail=f"{name or 'own clock'} {deviation_ms} ms"))

    def monotonic(self) -> float:
        return self.schedule.now

    def reachable(self, server: str) -> bool:
        return self.reach[server]

    def report(self, event: Event) -> None:
        self.judge.reported(self, event)

    # -- requests --------------------------------------------------------------------------------

    def jump(self, by_ms: int) -> None:
        self.skew_ms += by_ms

    def cancel(self, attempt: Attempt) -> None:
        self.runner.cancel(attempt.task)

    def close(self, key: bytes, done: Callable[[Closed], None]) -> None:
        def ended(closed: Closed | None, error: Exception | None) -> None:
            if closed is not None:
                done(closed)
            self._judge_crash(error)

        self.runner.start(_exclusively(key, self.copies.close(key)), ended)

    # -- stalls ----------------------------------------------------------------------------------

    def watch_for_stalls(self) -> None:
        """Start the heart-beat. Costly in simulated time, so it runs only around a freeze."""
        if self._guard is None and self.alive:
            self._guard = StallGuard(self.copies, self.monotonic, self._call_later)

    @property
    def is_watched(self) -> bool:
        """Whether the heart-beat runs: a process that was restarted meanwhile has none yet."""
        return self._guard is not None

    def _call_later(self, delay_s: float, act: Callable[[], None]) -> Timer:
        timer = Beat(act)
        self.after(delay_s, timer)
        return timer

    def freeze(self) -> None:
        if not self.frozen:
            self.note_frozen(self.schedule.now)
        super().freeze()

    def thaw(self) -> None:
        if self.frozen:
            self.note_thawed(self.schedule.now)
        super().thaw()
        if self._guard is not None:
            self.after(4 * StallGuard.BEAT_S, self._stop_guard)

    def _stop_guard(self) -> None:
        if self._guard is not None and not self.frozen:
            self._guard.stop()
            self._guard = None

    def _in_order(self, waiting: list[tuple[Act, tuple[Any, ...]]]) -> list[tuple[Act, tuple[Any, ...]]]:
        """Timers first, as on an event loop: what arrived meanwhile is read in the same turn, but the requests in it
        become tasks that run in the next one."""
        return sorted(waiting, key=lambda one: not isinstance(one[0], Beat))

    # -- calls -----------------------------------------------------------------------------------

    def started(self, collector: Collector) -> None:
        effect = collector.effect
        in_reach = (name for name, up in self.reach.items() if up and self._answers(name))
        self.note_sent(effect.key, self.schedule.now, in_reach)
        if type(effect) is Put:
            self.judge.putting(self, collector.task.context, effect)
        else:
            self.answered[effect.key] = (self.schedule.now, collector.replies)
            self.judge.looking(self, effect.key, collector.task.context)

    def call(self, collector: Collector, server: str) -> None:
        if not self.reach[server]:
            collector.take(server, UNREACHABLE)
            return
        store = self.servers[server]
        if self.lines is None:
            self.network.send(self.name, store, self._arrive, collector, store, store.run, None)
        else:
            line = self.lines[server]
            line.to_server(self._arrive, collector, store, line.run, line)

    def _arrive(self, collector: Collector, store: ModelSessionServer, run: int, line: Line | None) -> None:
        """At the session server. A late put is carried out even if nobody waits for it any more."""
        if line is not None and run != store.run:
            return
        effect = collector.effect
        reply: Any
        if type(effect) is Get:
            reply = store.get(effect.key)
        else:
            assert type(effect) is Put
            reply = self._put(store, effect)
        collector.read_at_ms[store.name] = store.wall_ms()
        if line is not None:
            line.to_web(collector.take, store.name, reply)
        elif run == store.run and self.alive:
            self.network.send(store.name, self, collector.take, store.name, reply)

    def call_item(self, call: ItemCall, effect: PutItem | TakeItem) -> None:
        if not self.reach.get(effect.server):
            self.after(0.0, call.take, UNREACHABLE)
            return
        self.network.send(self.name, self.servers[effect.server], self._item_arrives, call, effect)

    def _item_arrives(self, call: ItemCall, effect: PutItem | TakeItem) -> None:
        store = self.servers[effect.server]
        reply = store.item(effect)
        if self.alive:
            self.network.send(store.name, self, call.take, reply)

    def replied(self, collector: Collector, server: str) -> None:
        """A reply says what time it was there; the product asks for it, as often as this takes notice."""
        now = self.schedule.now
        if now - self._heard_at.get(server, -1.0) >= CLOCK_PERIOD_S:
            self._heard_at[server] = now
            self.clock.heard(server, now - collector.sent_at, collector.read_at_ms[server])

    def _hear(self, server: str) -> None:
        """What time is it? Asked with each new connection."""
        self._heard_at[server] = self.schedule.now
        self.clock.heard(server, self.network.LATENCY_S, self.servers[server].wall_ms())

    def _put(self, store: ModelSessionServer, effect: Put) -> PutReply:
        return store.put(effect.key, effect.seen[store.name], effect.entry, effect.notify)

    def tell(self, effect: Tell) -> None:
        for name, up in self.reach.items():
            if up:
                store = self.servers[name]
                if self.lines is None:
                    self.network.send(self.name, store, self._pass_on, store, effect)
                else:
                    self.lines[name].to_server(self._pass_on, store, effect)

    def _pass_on(self, store: ModelSessionServer, effect: Tell) -> None:
        self.post(store, effect.server_id, effect.message)

    post: Callable[[ModelSessionServer, bytes, bytes], None]
    """Set by the farm: brings a message to whichever web server has that ID."""

    def on_message(self, raw: bytes) -> None:
        message = decode_message(raw)
        before = self.copies.cache.get(message.key)
        answer = self.copies.on_message(message)
        if isinstance(message, Notice):
            self.judge.heard(self, message, before)
            if self.everyone is not None and self.everyone.is_about_it(message):
                self._watch_everyone(self.everyone, self._questions)
        if answer is not None:
            self.tell(answer)

    def links_heard(self) -> dict[str, float]:
        return {name: self.beats.get(name, -float("inf")) for name, up in self.reach.items() if up}

    # -- connections -----------------------------------------------------------------------------

    def silent(self, server: str) -> None:
        """A call timed out: the link drops the connection and tries to reconnect."""
        self.disconnected(server)

    def disconnected(self, server: str) -> None:
        if self.reach[server]:
            self.reach[server] = False
            if self.lines is not None:
                self.lines.pop(server).give_up()
            self._changed(server)  # first, as a link does it: nothing is served from a lease that ends with it
            self.runner.lost_contact(server)
            self.after(self.PROBE_S * (0.5 + self.jitter()), self._probe, server)

    def _probe(self, server: str) -> None:
        if self._answers(server):
            self._connected_to[server] = self.servers[server].run
            self.reach[server] = True
            self._connect(server)
            self._changed(server)
            self._hear(server)
        else:
            self.after(self.PROBE_S * (0.5 + self.jitter()), self._probe, server)

    def _connect(self, server: str) -> None:
        self.beats.pop(server, None)
        if self.lines is not None:
            store = self.servers[server]
            self.lines[server] = Line(self.network, self.schedule, self, store, store.run)

    def _beat(self) -> None:
        """As the links do it: a heart-beat on each of them, and who does not answer in time is away."""
        assert self.lines is not None
        now = self.schedule.now
        for name, line in self.lines.items():
            line.to_server(self._beat_arrives, self.servers[name], line, now)
            self.after(self.TIMEOUT_S, self._beat_over, name, line, now)
        self.after(self.copies.links.beat_s, self._beat)

    def _beat_arrives(self, store: ModelSessionServer, line: Line, sent_at: float) -> None:
        """Who takes no puts answers with an error."""
        if store.run == line.run:
            line.to_web(self._beaten, store.name, line, sent_at, not store.read_only)

    def _beaten(self, server: str, line: Line, sent_at: float, well: bool) -> None:
        line.answered_at = sent_at
        if well:
            self.beats[server] = sent_at
            self.copies.links.heard(server, sent_at)

    def _beat_over(self, server: str, line: Line, sent_at: float) -> None:
        assert self.lines is not None
        if self.lines.get(server) is line and line.answered_at < sent_at:
            self.disconnected(server)

    def _answers(self, server: str) -> bool:
        store, cut = self.servers[server], self.network.cut
        return store.alive and not store.frozen and (self.name, server) not in cut and (server, self.name) not in cut

    def _ping(self) -> None:
        """A link that is idle finds out by itself that the session server was restarted while it was cut off."""
        for name, server in self.servers.items():
            if self.reach[name] and server.run != self._connected_to[name]:
                self.disconnected(name)

    def _changed(self, server: str) -> None:
        self.judge.lost_contact(self, server)
        self.repair.lost_server(server)
        self._alarm()

    def look_through(self) -> None:
        """Repair all that needs it, hosted or not."""
        self._alarm()

    # -- repair: as drivers.background_repair does it ------------------------------------------------------

    def _alarm(self) -> None:
        if not self._mending_due:
            self._mending_due = True
            self.after(self.SETTLE_S, self._mend)
        if not self._scan_due:
            self._scan_due = True
            self.after(self.SCAN_DELAY_S * (1 + self.jitter()), self._scan)

    def _mend_regularly(self) -> None:
        self._ping()
        self.clock.tick()
        self.copies.cache.drop_expired(self.now_ms(), 1000)
        self._mend()
        self.after(self.MENDING_S, self._mend_regularly)

    def _mend(self) -> None:
        self._mending_due = False
        for key in self.needing_repair():
            self.repair_one(key)

    def needing_repair(self) -> list[bytes]:
        """What :meth:`Repair.every` goes through in slices, all at once, and in an order that every seed has had."""
        copies = self.copies
        counted = sorted({*copies.under_replicated, *copies.puts.unsettled})
        candidates = dict.fromkeys([*copies.closing, *counted, *copies.cache.keys()])
        return list(filter(self.repair.needs, candidates))

    def _scan(self) -> None:
        self._scan_due = False
        for name, store in self.servers.items():
            if not self.reach[name]:
                continue
            if not self._answers(name):
                self.after(self.TIMEOUT_S, self.disconnected, name)
                continue
            for key in self.repair.unknown(name, list(store.entries)):
                self.repair_one(key)

    def repair_one(self, key: bytes) -> None:
        self.judge.repairing(self, key)
        self.runner.start(_exclusively(key, self.repair.repair(key)), self._repaired)

    def _repaired(self, outcome: Repaired | None, error: Exception | None) -> None:
        self._judge_crash(error)

    def _judge_crash(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, CoatcheckError):
            self.judge.crashed(self, error)


def _exclusively(key: bytes, flow: Flow[Any]) -> Flow[Any]:
    return (yield Exclusive(key, flow))
