"""Events in the log: one line each, no secrets; a flood of one kind does not fill it."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Protocol

from coatcheck.seldom import Seldom


class Loggable(Protocol):
    """What an event tells the log."""

    @property
    def logger(self) -> str:
        """The name of the logger."""

    @property
    def level(self) -> int:
        """As :mod:`logging` numbers them: what an operator must see is a warning."""

    @property
    def event(self) -> str:
        """Its name, as docs/events.md has it."""

    @property
    def line(self) -> str:
        """One line without secrets."""

    @property
    def flood(self) -> str:
        """Lines of one such name are written seldom together (:mod:`coatcheck.seldom`)."""


def log_event(event: Loggable) -> None:
    """Write the event to its log, or count it where there are too many like it."""
    if logging.getLogger(event.logger).isEnabledFor(event.level):
        _seldom(event.logger).write(event.level, "%s", event.line, kind=event.flood, event=event.event)


@cache
def _seldom(logger: str) -> Seldom:
    return Seldom(logging.getLogger(logger), time.monotonic)
