"""Connections that keep their order: what the leases by link rest on (protocol section 4)."""

from __future__ import annotations

from typing import Any

from coatcheck.simulation.bare.network import Network
from coatcheck.simulation.schedule import Act, Process, Schedule

APART_S = 1e-7
"""Between two messages that would arrive in the same moment."""


class _Way:
    """One direction. What is lost is not followed by anything: then the connection stands still (TCP)."""

    def __init__(self, network: Network, schedule: Schedule, sender: str, to: Process) -> None:
        self._network = network
        self._schedule = schedule
        self._sender = sender
        self._to = to
        self._last_at = 0.0
        self.stuck = False

    def send(self, act: Act, *args: Any) -> None:
        delay_s = None if self.stuck else self._network.transit_s(self._sender, self._to.name)
        if delay_s is None:
            self.stuck = True
            return
        self._last_at = max(self._last_at + APART_S, self._schedule.now + delay_s)
        self._to.after(self._last_at - self._schedule.now, act, *args)


class Line:
    """One connection of a web server to one run of a session server.

    What is on its way to the session server when the connection is given up may still come; nothing comes back.
    """

    def __init__(self, network: Network, schedule: Schedule, web: Process, store: Process, run: int) -> None:
        self.run = run
        self.answered_at = -1.0
        """When the newest heart-beat was sent that was answered, well or not."""
        self._up = _Way(network, schedule, web.name, store)
        self._down = _Way(network, schedule, store.name, web)
        self._given_up = False

    def to_server(self, act: Act, *args: Any) -> None:
        self._up.send(act, *args)

    def to_web(self, act: Act, *args: Any) -> None:
        self._down.send(self._arrive, act, args)

    def lose(self) -> None:
        """A message to the web server is lost, and all that would follow it."""
        self._down.stuck = True

    def give_up(self) -> None:
        self._given_up = True

    def _arrive(self, act: Act, args: tuple[Any, ...]) -> None:
        if not self._given_up:
            act(*args)
