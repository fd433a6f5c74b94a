"""Time and a network in which nothing happens by itself: every next step is chosen."""

from __future__ import annotations

from random import Random
from typing import Any

from coatcheck.simulation.bare.network import Network
from coatcheck.simulation.bare.runner import Collector, Runner
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.schedule import Act, Process, Schedule

BEGIN_S = 10.0

Timer = tuple[float, int, Act, tuple[Any, ...]]


class Message:
    """In flight until it is chosen."""

    __slots__ = ("act", "args", "label", "to")

    def __init__(self, to: Process, act: Act, args: tuple[Any, ...], label: str) -> None:
        self.to = to
        self.act = act
        self.args = args
        self.label = label


class ChosenSchedule(Schedule):
    """What takes no time happens at once; time itself passes only when that is chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN_S  # later than "never", which is 0
        self.urgent: list[tuple[Act, tuple[Any, ...]]] = []
        self.timers: list[tuple[float, int, Act, tuple[Any, ...]]] = []

    def after(self, delay_s: float, act: Act, *args: Any) -> None:
        self._count += 1
        if delay_s <= 0:
            self.urgent.append((act, args))
        else:
            self.timers.append((round(self.now + delay_s, 6), self._count, act, args))

    def settle(self) -> None:
        while self.urgent:
            act, args = self.urgent.pop(0)
            self.steps += 1
            act(*args)

    def forget_idle(self) -> None:
        """Time-outs of what has been answered, and timers of the dead, change nothing."""
        self.timers = [timer for timer in self.timers if _matters(timer)]

    def fire_next(self) -> None:
        timer = min(self.timers, key=lambda one: one[:2])
        self.timers.remove(timer)
        self.now = max(self.now, timer[0])
        self.steps += 1
        timer[2](*timer[3])


def _matters(timer: tuple[float, int, Act, tuple[Any, ...]]) -> bool:
    act, args = timer[2], timer[3]
    owner = getattr(act, "__self__", None)
    if isinstance(owner, Process) and not owner.alive:
        return False
    inner = args[0] if args else None
    if getattr(inner, "__func__", None) is Runner._time_out:
        return bool(args[1].missing)
    return True


class ChosenNetwork(Network):
    """Keeps messages until they are chosen. Replies of session servers arrive at once, or are lost."""

    def __init__(self, ordered: bool) -> None:
        super().__init__(Random(0))
        self.messages: list[Message] = []
        self.lose_reply = False
        self.ordered = ordered

    def send(self, sender: str, to: Process, act: Act, *args: Any) -> None:
        owner = getattr(act, "__self__", None)
        if (sender, to.name) in self.cut:
            return
        if isinstance(owner, Collector):
            if not self.lose_reply:
                if self.ordered:
                    self.hand_over(sender, to)
                to.deliver(act, *args)
        elif isinstance(to, ModelSessionServer) and not isinstance(args[0], Collector):
            to.deliver(act, *args)  # a message for another web server: in flight from there on
        else:
            self.messages.append(Message(to, act, args, f"{sender} to {to.name}"))

    def hand_over(self, sender: str, to: Process) -> None:
        """Deliver what one has sent to the other so far."""
        label = f"{sender} to {to.name}"
        sent = [message for message in self.messages if message.label == label]
        self.messages = [message for message in self.messages if message.label != label]
        for message in sent:
            to.deliver(message.act, *message.args)

    def carry(self, to: Process, act: Act, *args: Any) -> None:
        self.messages.append(Message(to, act, args, f"answer to {to.name}"))
