"""What a health check of a web server shows, and when the next one is due."""

from __future__ import annotations

from enum import Enum
from typing import Final

from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Check, ServerState

_MIN_GAP_S: Final = 0.05
"""Between two checks of one server, however often one is asked for."""
_ASKED_ANEW_AFTER: Final = 20
"""Time-outs after which an unanswered check is given up and asked anew. Until then its answer is still waited for, so
that a server which was blocked is known to be well the moment it is, and a frozen one is not flooded with checks."""


class NoStatus(Enum):
    """Why a health check has no status."""

    NO_HTTP = "the connection ended, or what came was no HTTP"
    QUEUE_FULL = "its queue of connections is full"
    REFUSED = "nobody listens there, or it is not ours"
    OWN_SHORTAGE = "we have no descriptor left, so we could not even ask"


_SHOWN_BY: Final = {
    NoStatus.NO_HTTP: Check.REFUSED,
    NoStatus.QUEUE_FULL: Check.SILENT,
    NoStatus.REFUSED: Check.REFUSED,
    NoStatus.OWN_SHORTAGE: Check.INCONCLUSIVE,
}


class HealthQuestion:
    """The checks of one web server: is asked one at a time, waits for the answer, and says what was shown."""

    __slots__ = ("_answers", "_began", "_limits", "_server", "_silences", "gives_up")

    def __init__(self, limits: Limits, server: ServerState) -> None:
        self._limits = limits
        self._server = server
        self._began = 0.0
        self._answers = 0
        self._silences = 0
        self.gives_up = False
        """Whether the question that is still open is to be dropped: the next check asks anew."""

    def asked(self) -> None:
        """A new question goes out."""
        self._silences = 0

    def waits(self, now: float) -> None:
        """From ``now`` on an answer is waited for, ``check_timeout_s`` long."""
        self._began = now
        self._answers = self._server.answers
        self.gives_up = False

    def answered(self, answer: int | NoStatus) -> Check:
        """An answer came: an HTTP status, or the reason why there is none."""
        if isinstance(answer, NoStatus):
            return _SHOWN_BY[answer]
        return Check.PASSED if 200 <= answer < 300 else Check.UNFIT

    def timed_out(self, now: float) -> Check:
        """Nothing came in time. If we were late ourselves, or it answers others, its silence to us shows nothing."""
        self._silences += 1
        self.gives_up = self._silences >= _ASKED_ANEW_AFTER
        was_late = now - self._began > 2 * self._limits.check_timeout_s
        return Check.INCONCLUSIVE if was_late or self._server.answers != self._answers else Check.SILENT

    def gap_s(self) -> float:
        """How long no check is made after one, whoever asks for it."""
        return min(_MIN_GAP_S, self._limits.check_interval_s)

    def pause_s(self, now: float) -> float:
        """How long it takes from ``now`` to the next check, if nobody asks for one."""
        return self._began + self._limits.check_interval_s - now
