"""What a store tells its operator: events, beside the replies that its caller gets."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

from coatcheck.seldom import INFO, WARNING


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

    @property
    def logger(self) -> str:
        return "coatcheck.stores"

    @property
    def level(self) -> int:
        return INFO if self.kind is StoreEventKind.REACHABLE else WARNING

    @property
    def event(self) -> str:
        return self.kind.value

    @property
    def line(self) -> str:
        return f"{self.store}: {self.kind.value} {self.detail}"

    @property
    def flood(self) -> str:
        return self.kind.value + self.store


EventSink = Callable[[StoreEvent], None]
