"""Runs the product's flows in simulated time: the third driver, beside asyncio and threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from coatcheck.errors import CoatcheckError
from coatcheck.replication.effects import (
    Accepted,
    Acknowledge,
    Detach,
    Exclusive,
    Flow,
    FreshKeys,
    Get,
    Gotten,
    Pause,
    Put,
    PutItem,
    Rest,
    Settled,
    TakeItem,
    Tell,
    Together,
    Unreachable,
)

Done = Callable[[Any, Exception | None], None]


class Host(Protocol):
    """The web server that flows run in."""

    def monotonic(self) -> float: ...

    def after(self, delay_s: float, act: Callable[..., Any], *args: Any) -> None: ...

    def call(self, collector: Collector, server: str) -> None:
        """Send the collector's effect to one session server; :meth:`Collector.take` gets the reply."""
        ...

    def started(self, collector: Collector) -> None: ...

    def call_item(self, call: ItemCall, effect: PutItem | TakeItem) -> None:
        """Send it to its session server; :meth:`ItemCall.take` gets the reply."""
        ...

    def tell(self, effect: Tell) -> None: ...

    def replied(self, collector: Collector, server: str) -> None: ...


class Task:
    """One flow under way. ``context``: the request that it belongs to, or ``None`` for repair."""

    __slots__ = ("acknowledge", "child", "context", "done", "ended", "flow", "on_cancel")

    def __init__(self, flow: Flow[Any], done: Done, context: Any, acknowledge: Done | None) -> None:
        self.flow = flow
        self.done = done
        self.context = context
        self.acknowledge = acknowledge
        self.child: Task | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.ended = False


class Collector:
    """The replies to one get or put, from several servers."""

    __slots__ = (
        "accepted",
        "effect",
        "enough",
        "missing",
        "read_at_ms",
        "replies",
        "runner",
        "sent_at",
        "task",
        "waiting",
    )

    def __init__(self, runner: Runner, task: Task, effect: Get | Put, servers: int, enough: int) -> None:
        self.runner = runner
        self.task = task
        self.effect = effect
        self.sent_at = runner.host.monotonic()
        self.replies: dict[str, Any] = {}
        self.read_at_ms: dict[str, float] = {}
        """What each server's clock showed when it answered."""
        self.missing = servers
        self.enough = enough
        self.accepted = 0
        self.waiting = False

    def take(self, server: str, reply: Any) -> None:
        """Replies count once; what comes after the time-out is lost."""
        if server in self.replies:
            return
        if server in self.read_at_ms:
            self.runner.host.replied(self, server)
        self.replies[server] = reply
        self.missing -= 1
        if type(reply) is Accepted:
            self.accepted += 1
        if self.waiting and (not self.missing or self.accepted >= self.enough):
            self.waiting = False
            self.runner.step(self.task, self.answer(), None)

    def answer(self) -> Gotten | Settled:
        if type(self.effect) is Get:
            return Gotten(self.sent_at, self.replies)
        return Settled(self.sent_at, self.replies, self if self.missing else None)

    def servers(self) -> tuple[str, ...] | Mapping[str, Any]:
        return self.effect.servers if type(self.effect) is Get else self.effect.seen  # type: ignore[union-attr]


class ItemCall:
    """What a put or a take of an item comes to; only the first reply counts."""

    __slots__ = ("_answered", "_runner", "task")

    def __init__(self, runner: Runner, task: Task) -> None:
        self._runner = runner
        self.task = task
        self._answered = False

    def take(self, reply: Any) -> None:
        if not self._answered:
            self._answered = True
            self._runner.step(self.task, reply, None)


class _Turns:
    __slots__ = ("busy", "waiting")

    def __init__(self) -> None:
        self.busy = False
        self.waiting: deque[Task] = deque()


class Runner:
    """Answers the effects of flows; see :mod:`coatcheck.replication.effects`."""

    TIMEOUT_S = 0.3

    def __init__(self, host: Host) -> None:
        self.host = host
        self.collectors: dict[Collector, None] = {}
        self.turns: dict[bytes, _Turns] = {}
        self.running: dict[Task, None] = {}

    def start(self, flow: Flow[Any], done: Done, context: Any = None, acknowledge: Done | None = None) -> Task:
        """Run a flow until it has to wait; ``done`` gets its result or its error, now or later."""
        task = Task(flow, done, context, acknowledge)
        self.running[task] = None
        self.step(task, None, None)
        return task

    def step(self, task: Task, answer: Any, error: Exception | None) -> None:
        """Hand a flow its answer and go on until it has to wait again."""
        while not task.ended:
            try:
                effect = task.flow.send(answer) if error is None else task.flow.throw(error)
            except StopIteration as end:
                return self._end(task, end.value, None)
            except Exception as failure:  # noqa: BLE001 - whoever waits for the flow judges it
                return self._end(task, None, failure)
            error = None
            wait, answer = self._answer(task, effect)
            if wait:
                return None
        return None

    def cancel(self, task: Task) -> None:
        """As asyncio does: the innermost flow first; what runs detached goes on."""
        if task.ended:
            return
        if task.child is not None:
            self.cancel(task.child)
        if task.on_cancel is not None:
            task.on_cancel()
        if not task.ended:
            task.flow.close()
            self._end(task, None, None, told=False)

    def _end(self, task: Task, result: Any, error: Exception | None, told: bool = True) -> None:
        task.ended = True
        self.running.pop(task, None)
        if told:
            task.done(result, error)

    def _answer(self, task: Task, effect: Any) -> tuple[bool, Any]:
        """Whether the flow has to wait, and the answer if not."""
        kind = type(effect)
        if kind is Get or kind is Put:
            return self._ask(task, effect)
        if kind is Exclusive:
            return self._exclusive(task, effect)
        if kind is Pause:
            self.host.after(effect.seconds, self.step, task, None, None)
            return True, None
        if kind is Rest:
            return self._rest(task, effect.settled)
        if kind is Acknowledge:
            if task.acknowledge is not None:
                task.acknowledge(effect.result, None)
            return False, None
        if kind is Detach:
            return self._detach(task, effect.flow)
        if kind is FreshKeys:
            return False, True
        if kind is Together:
            return self._together(task, effect.flows)
        if kind is PutItem or kind is TakeItem:
            call = ItemCall(self, task)
            self.host.call_item(call, effect)
            self.host.after(self.TIMEOUT_S, call.take, Unreachable("no answer in time"))
            return True, None
        assert kind is Tell
        self.host.tell(effect)
        return False, None

    # -- session servers -------------------------------------------------------------------------

    def _ask(self, task: Task, effect: Get | Put) -> tuple[bool, Any]:
        if type(effect) is Get:
            servers: Any = effect.servers
            enough = len(servers) + 1
        else:
            servers = effect.seen  # type: ignore[union-attr]
            enough = effect.enough or len(servers) + 1  # type: ignore[union-attr]
        collector = Collector(self, task, effect, len(servers), enough)
        self.host.started(collector)
        for server in servers:
            self.host.call(collector, server)
        if not collector.missing or collector.accepted >= collector.enough:
            return False, collector.answer()
        collector.waiting = True
        self.collectors[collector] = None
        self.host.after(self.TIMEOUT_S, self._time_out, collector)
        return True, None

    def _time_out(self, collector: Collector) -> None:
        self.collectors.pop(collector, None)
        if collector.missing:
            for server in list(collector.servers()):
                if server not in collector.replies:
                    self.host.silent(server)  # type: ignore[attr-defined]
                    collector.take(server, Unreachable("no answer in time"))

    def lost_contact(self, server: str) -> None:
        """The connection broke: all that is outstanding there is answered now."""
        for collector in list(self.collectors):
            if server in collector.servers():
                collector.take(server, Unreachable("connection lost"))

    def _rest(self, task: Task, settled: Settled) -> tuple[bool, Any]:
        collector: Collector = settled.pending
        settled.pending = None
        if not collector.missing:
            return False, settled
        collector.enough = len(collector.servers()) + 1
        collector.waiting = True
        return True, None

    # -- turns -----------------------------------------------------------------------------------

    def _exclusive(self, task: Task, effect: Exclusive) -> tuple[bool, Any]:
        turns = self.turns.get(effect.key)
        if turns is None:
            turns = self.turns[effect.key] = _Turns()

        def done(result: Any, error: Exception | None) -> None:
            task.child = None
            self._next_turn(effect.key, turns)
            self.step(task, result, error)

        child = Task(effect.flow, done, task.context, task.acknowledge)
        task.child = child
        child.on_cancel = lambda: self._give_up(effect.key, turns, child)
        if turns.busy:
            turns.waiting.append(child)
        else:
            turns.busy = True
            self.running[child] = None
            self.host.after(0.0, self.step, child, None, None)
        return True, None

    def _next_turn(self, key: bytes, turns: _Turns) -> None:
        if turns.waiting:
            child = turns.waiting.popleft()
            self.running[child] = None
            self.host.after(0.0, self.step, child, None, None)
        else:
            turns.busy = False
            self.turns.pop(key, None)

    def _give_up(self, key: bytes, turns: _Turns, child: Task) -> None:
        """A cancelled flow leaves the queue, or hands its turn on."""
        if child in turns.waiting:
            turns.waiting.remove(child)
            child.flow.close()
            child.ended = True
        else:
            child.flow.close()
            child.ended = True
            self.running.pop(child, None)
            self._next_turn(key, turns)

    def _detach(self, task: Task, flow: Flow[Any]) -> tuple[bool, Any]:
        told = False

        def tell(result: Any, error: Exception | None) -> None:
            nonlocal told
            if not told:
                told = True
                self.host.after(0.0, self.step, task, result, error)

        self.start(flow, tell, task.context, tell)
        return True, None

    def _together(self, task: Task, flows: tuple[Flow[Any], ...]) -> tuple[bool, Any]:
        """What is cancelled meanwhile is only waited for no more."""
        ended: list[Any] = [None] * len(flows)
        missing = len(flows)

        def end_of(place: int) -> Done:
            def end(result: Any, error: Exception | None) -> None:
                nonlocal missing
                ended[place] = result if error is None else error
                missing -= 1
                if not missing:
                    wrong = [one for one in ended if isinstance(one, Exception) and not isinstance(one, CoatcheckError)]
                    self.host.after(0.0, self.step, task, ended, wrong[0] if wrong else None)

            return end

        for place, flow in enumerate(flows):
            self.start(flow, end_of(place), task.context)
        return bool(flows), ended
