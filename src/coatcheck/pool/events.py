"""What a pool reports to operators: one flat record per event, never a token or a password in it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

from coatcheck.event_log import log_event
from coatcheck.seldom import WARNING


class PoolEventKind(Enum):
    """Every event of a pool; the value is its name in logs and metrics."""

    LOGIN_FAILED = "pool.login_failed"
    LOGOUT_FAILED = "pool.logout_failed"
    LOGOUT_SKIPPED = "pool.logout_skipped"
    PROBE_FAILED = "pool.probe_failed"
    KEEPALIVE_FAILED = "pool.keepalive_failed"
    LEASE_LOST = "pool.lease_lost"
    LEASE_HELD_LONG = "pool.lease_held_long"
    LEASE_NOT_EXTENDED = "pool.lease_not_extended"
    STORE_UNAVAILABLE = "pool.store_unavailable"
    ANOMALY = "pool.anomaly"
    AUDIT_LOST = "pool.audit_lost"


class PoolEvent(msgspec.Struct, frozen=True):
    """``detail``: the type of an error, a fencing number, where a lease was borrowed, or what stands out."""

    kind: PoolEventKind
    user: str
    detail: str = ""

    @property
    def logger(self) -> str:
        return "coatcheck.pool"

    @property
    def level(self) -> int:
        return WARNING

    @property
    def event(self) -> str:
        return self.kind.value

    @property
    def line(self) -> str:
        return f"{self.kind.value} user={self.user!r} {self.detail}"

    @property
    def flood(self) -> str:
        return self.kind.value


PoolObserver = Callable[[PoolEvent], None]


def tell(observer: PoolObserver, event: PoolEvent) -> None:
    """Tell the observer. Its own failure is told in the log, and changes nothing else."""
    try:
        observer(event)
    except Exception as error:  # noqa: BLE001 - a callback's; what it was told of goes on
        log_event(PoolEvent(event.kind, event.user, f"{event.detail} (on_event failed: {type(error).__name__})"))
