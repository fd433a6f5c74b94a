"""What a pool reports to operators: one flat record per event, never a token or a password in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum

import msgspec


class PoolEventKind(Enum):
    """Every event of a pool; the value is its name in logs and metrics."""

    LOGIN_FAILED = "pool.login_failed"
    LOGOUT_FAILED = "pool.logout_failed"
    LOGOUT_SKIPPED = "pool.logout_skipped"
    PROBE_FAILED = "pool.probe_failed"
    KEEPALIVE_FAILED = "pool.keepalive_failed"
    LEASE_LOST = "pool.lease_lost"
    STORE_UNAVAILABLE = "pool.store_unavailable"


class PoolEvent(msgspec.Struct, frozen=True):
    """``detail``: the type of an error, or a fencing number."""

    kind: PoolEventKind
    user: str
    detail: str = ""


PoolObserver = Callable[[PoolEvent], None]


def log_event(event: PoolEvent) -> None:
    """The default observer: a warning of the logger ``coatcheck.pool``."""
    logging.getLogger("coatcheck.pool").warning("%s user=%r %s", event.kind.value, event.user, event.detail)
