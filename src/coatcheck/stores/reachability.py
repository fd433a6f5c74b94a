"""Whether a store answers, and who wants to know when that changes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind

logger = logging.getLogger("coatcheck.stores")

OnChange = Callable[[str, bool], None]


class Reachability:
    """One flag with watchers; setting it to what it already is tells nobody."""

    def __init__(self, name: str, on_event: EventSink) -> None:
        self.now = False
        self._name = name
        self._on_event = on_event
        self._watchers: list[OnChange] = []
        self._last_why: str | None = None

    def watch(self, on_change: OnChange) -> None:
        self._watchers.append(on_change)

    def set(self, reachable: bool, why: str = "", *, event: bool = True) -> None:
        """Record what the last attempt showed; the event is repeated only when the reason changes."""
        changed = reachable is not self.now
        self.now = reachable
        if event and (changed or (not reachable and why != self._last_why)):
            self._last_why = why
            kind = StoreEventKind.REACHABLE if reachable else StoreEventKind.UNREACHABLE
            self._on_event(StoreEvent(self._name, kind, why))
        if not changed:
            return
        for on_change in self._watchers:
            try:
                on_change(self._name, reachable)
            except Exception:
                logger.exception("a watcher of store %s failed", self._name)
