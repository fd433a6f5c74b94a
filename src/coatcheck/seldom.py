"""A log that a flood does not fill: of each kind of line a few, then one line that counts the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

DEBUG: Final = 10
INFO: Final = 20
WARNING: Final = 30
"""Levels, as :mod:`logging` numbers them."""

BURST: Final = 10
"""Lines of one kind that are written as they come."""
PERIOD_S: Final = 10.0
"""After the burst one line of a kind is written in each such period, with the number of those left out."""
MAX_KINDS: Final = 256
"""Kinds that are told apart; all further ones count as one kind."""

_OTHERS: Final = "others"


class Logger(Protocol):
    """What is needed of :class:`logging.Logger`."""

    def log(self, level: int, message: str, *arguments: Any, extra: Mapping[str, object] | None = None) -> None:
        """Write one line."""
        ...


class _Kind:
    __slots__ = ("left", "refilled_at", "skipped")

    def __init__(self, now: float) -> None:
        self.left = float(BURST)
        self.refilled_at = now
        self.skipped = 0


class Seldom:
    """Writes lines to a log, of each kind :data:`BURST` at once and one every :data:`PERIOD_S` from then on.

    ``clock`` answers seconds and never goes back. A kind is the line's text before its arguments are put in, unless
    one is named; so nothing that a stranger sends makes a new kind.
    """

    def __init__(self, log: Logger, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def warning(self, message: str, *arguments: Any, kind: str = "") -> None:
        """Write a warning, or count it."""
        self.write(WARNING, message, *arguments, kind=kind)

    def write(self, level: int, message: str, *arguments: Any, kind: str = "", event: str = "") -> None:
        """Write a line of this level (as :mod:`logging` numbers them), or count it. ``event``: the name of what it
        tells, for a log in JSON."""
        skipped = self._take(kind or message)
        if skipped is None:
            return
        if skipped:
            message, arguments = message + " (and %d more like it)", (*arguments, skipped)
        if event:
            self._log.log(level, message, *arguments, extra={"event": event})
        else:
            self._log.log(level, message, *arguments)

    def _take(self, kind: str) -> int | None:
        """How many of this kind were left out before this one, which is written; ``None``: it is left out too."""
        now = self._clock()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= MAX_KINDS:
                kind = _OTHERS
            known = self._kinds.setdefault(kind, _Kind(now))
        known.left = min(float(BURST), known.left + (now - known.refilled_at) / PERIOD_S)
        known.refilled_at = now
        if known.left < 1.0:
            known.skipped += 1
            return None
        known.left -= 1.0
        skipped, known.skipped = known.skipped, 0
        return skipped
