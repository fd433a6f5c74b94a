"""What a pool reports to operators: one flat record per event, never a token or a password in it."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

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


class PoolEvent(msgspec.Struct, frozen=True):
    """``detail``: the type of an error, a fencing number, or where a lease was borrowed."""

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
    def line(self) -> str:
        return f"{self.kind.value} user={self.user!r} {self.detail}"

    @property
    def flood(self) -> str:
        return self.kind.value


PoolObserver = Callable[[PoolEvent], None]
