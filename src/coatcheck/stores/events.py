"""What a store tells its operator: events, beside the replies that its caller gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum

import msgspec

from coatcheck.seldom import Seldom

logger = logging.getLogger("coatcheck.stores")
_seldom = Seldom(logger, time.monotonic)


class StoreEventKind(Enum):
    """What happened, as a stable name for logs and metrics."""

    REACHABLE = "store.reachable"
    UNREACHABLE = "store.unreachable"
    CORRUPT_ENTRY = "store.corrupt_entry"
    PUT_IMPOSSIBLE = "store.put_impossible"
    REFUSED_BY_SERVER = "store.refused_by_server"
    FULL = "store.full"
    EVICTION_POSSIBLE = "store.eviction_possible"


class StoreEvent(msgspec.Struct, frozen=True):
    """One event: the store's name, what happened, and one line of detail without secrets."""

    store: str
    kind: StoreEventKind
    detail: str = ""


EventSink = Callable[[StoreEvent], None]


def log_event(event: StoreEvent) -> None:
    """The sink of stores that were given none: a warning in the log of ``coatcheck.stores``."""
    level = logging.INFO if event.kind is StoreEventKind.REACHABLE else logging.WARNING
    _seldom.write(level, "%s: %s %s", event.store, event.kind.value, event.detail, kind=event.kind.value + event.store)
