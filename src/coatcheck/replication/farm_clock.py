"""What time it is in the farm: this host's clock, judged by the session servers' clocks (protocol section 8).

Every session server and the web server's own host have a vote. What most of them say is the time of the farm; between
two looks it goes on with the steady clock of this process. A clock that jumps is outvoted, and where no majority says
otherwise (two clocks that disagree; all clocks of one host that jump together) the farm's time goes on as it was.

Pure: the clocks are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

TOLERANCE_MS = 2_000
"""Clocks that differ by so much agree: less than the leeway of the timeouts."""
CONFIRM_S = 60.0
"""A majority that says another time than before is believed after so long: clocks that are set wrong, and right
again, change nothing."""
STALE_S = 10.0
"""What a session server said longer ago is no vote."""
MAX_ROUND_TRIP_S = 2.0
"""An answer that took longer says too little about the time: it may be wrong by half of that."""
REMIND_S = 60.0
"""A clock that deviates is reported once in so long."""
OWN = ""
"""The name of the own host's clock among the votes."""


class _Reading(msgspec.Struct, frozen=True):
    """``offset_ms``: what that clock shows, less the steady clock. ``at``: steady seconds."""

    offset_ms: float
    at: float


class FarmClock:
    """The time of the farm, in Unix milliseconds.

    ``steady`` answers seconds and never jumps; ``wall_ms`` is this host's clock. ``voters``: the session servers whose
    clocks may be heard. ``report(name, deviation_ms)`` is called when a clock deviates (again after
    :data:`REMIND_S`), and with 0 when it agrees again; ``name`` is ``""`` for this host's own.
    """

    def __init__(
        self,
        steady: Callable[[], float],
        wall_ms: Callable[[], float],
        voters: int = 0,
        report: Callable[[str, int], None] = lambda name, deviation_ms: None,
    ) -> None:
        self._steady = steady
        self._wall_ms = wall_ms
        self._report = report
        self._heard: dict[str, _Reading] = {}
        self._offset_ms = self._own_offset()
        self.expect(voters)
        self._pending: tuple[float, float] | None = None
        """Another time that a majority says: its offset, and since when."""
        self._reported: dict[str, float] = {}
        self.steps = 0

    def expect(self, voters: int) -> None:
        """So many session servers have clocks that will be heard; call it before the first one is."""
        self._voters = voters
        self._begun = not voters
        """Whether a majority has been heard since the start."""

    def now_ms(self) -> int:
        """The time of the farm."""
        return int(self._steady() * 1000 + self._offset_ms)

    def heard(self, server: str, round_trip_s: float, server_ms: float) -> None:
        """A session server said what time it is (Unix ms), ``round_trip_s`` after it was asked. After more than
        :data:`MAX_ROUND_TRIP_S` that is no vote."""
        if round_trip_s > MAX_ROUND_TRIP_S:
            return
        now = self._steady()
        # It said so at some moment between; half of the round trip is the best guess.
        reading = _Reading(server_ms - (now - round_trip_s / 2) * 1000, now)
        if not self._begun and server not in self._heard:
            # Without a majority the earliest is believed: that closes nothing too early.
            self._offset_ms = min(self._offset_ms, reading.offset_ms)
        self._heard[server] = reading
        self.tick()

    def tick(self) -> None:
        """Look at all clocks: when one was heard, and about once a second."""
        now = self._steady()
        votes = self._votes(now)
        offsets = list(votes.values())
        starting = bool(self._heard) and not self._begun
        majority = self._majority(offsets, 1 + (self._voters if starting else len(self._heard)))
        if starting and majority is not None:
            self._begun, self._offset_ms = True, majority  # just started: nothing has been judged by another time
        self._go_on(offsets, majority, now)
        self._tell(votes, now)

    def deviations(self) -> Mapping[str, int]:
        """By name, the clocks that deviate from the farm's time, in milliseconds."""
        votes = self._votes(self._steady())
        return {name: round(offset - self._offset_ms) for name, offset in votes.items() if not self._agrees(offset)}

    def status(self) -> dict[str, Any]:
        """For operators: the correction of the own host's clock, and who deviates (ms)."""
        return {
            "correction_ms": round(self._offset_ms - self._own_offset()),
            "deviating": {name or "own": deviation for name, deviation in self.deviations().items()},
        }

    # -- inside ----------------------------------------------------------------------------------

    def _own_offset(self) -> float:
        return self._wall_ms() - self._steady() * 1000

    def _votes(self, now: float) -> dict[str, float]:
        fresh = {name: reading.offset_ms for name, reading in self._heard.items() if now - reading.at <= STALE_S}
        return {OWN: self._own_offset(), **fresh}

    def _majority(self, offsets: list[float], voters: int) -> float | None:
        """The offset that more than half of all clocks agree with, silent ones included."""
        for offset in sorted(offsets):
            near = [other for other in offsets if abs(other - offset) <= TOLERANCE_MS]
            if 2 * len(near) > voters:
                return _median(near)
        return None

    def _go_on(self, offsets: list[float], majority: float | None, now: float) -> None:
        near = [offset for offset in offsets if self._agrees(offset)]
        if near:
            self._offset_ms = _median(near)
        if majority is None or self._agrees(majority):
            self._pending = None
        elif self._pending is None or abs(self._pending[0] - majority) > TOLERANCE_MS:
            self._pending = (majority, now)
        elif now - self._pending[1] >= CONFIRM_S:
            self._offset_ms, self._pending = majority, None
            self.steps += 1

    def _agrees(self, offset: float) -> bool:
        return abs(offset - self._offset_ms) <= TOLERANCE_MS

    def _tell(self, votes: dict[str, float], now: float) -> None:
        for name, offset in votes.items():
            last = self._reported.get(name)
            if self._agrees(offset):
                if last is not None:
                    del self._reported[name]
                    self._report(name, 0)
            elif last is None or now - last >= REMIND_S:
                self._reported[name] = now
                self._report(name, round(offset - self._offset_ms))


def _median(values: list[float]) -> float:
    """The middle one, the earlier of two: a clock that is behind closes nothing too early."""
    return sorted(values)[(len(values) - 1) // 2]
