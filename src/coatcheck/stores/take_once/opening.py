"""The adapter for the URL of a store of items; the only place that chooses one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from coatcheck.errors import ConfigError
from coatcheck.host_clock import HeldClock
from coatcheck.stores.address import StoreAddress, parse_url
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.take_once.port import TakeOncePlace

if TYPE_CHECKING:
    from coatcheck.stores.take_once.requests import ItemRequests

MAX_FARM_NAME_BYTES: Final = 64


def items_at(address: SessionServerAddress, farm: str, timeout_s: float) -> TakeOncePlace:
    """A store of items, not yet connected. Calls on event loops end within ``timeout_s`` (seconds).

    Raises:
        ConfigError: a farm's name that Redis would take for two.
    """
    if not farm or len(farm.encode()) > MAX_FARM_NAME_BYTES or set(farm) & set("{}\r\n"):
        raise ConfigError(f"farm: a name of 1 to {MAX_FARM_NAME_BYTES} bytes without braces is needed, not {farm!r}")
    name, parts = address.name, address.parts
    match parts.scheme:
        case "memory":
            return items_in_memory(name)
        case "sqlite":
            return items_in_a_file(name, parts.path, timeout_s)
        case "coatcheck":
            where = StoreAddress(
                host=parts.host,
                port=parts.port or 0,
                path=parts.path,
                password=parts.password,
                ours=True,
                name=name if address.proves_its_name else "",
            )
            return items_at_a_session_server(name, where, timeout_s)
    from coatcheck.stores.take_once.valkey import ValkeyRequests

    return _networked(name, parse_url(address.url), lambda: ValkeyRequests(farm), timeout_s)


def items_in_memory(name: str) -> TakeOncePlace:
    """In this process alone."""
    from coatcheck.stores.take_once.memory import MemoryItems, MemoryItemsForThreads

    items = MemoryItemsForThreads(name, time.monotonic)
    return TakeOncePlace(name, lambda: items, lambda: MemoryItems(items))


def items_in_a_file(name: str, path: str, timeout_s: float) -> TakeOncePlace:
    """SQLite."""
    from coatcheck.stores.take_once.sqlite import SqliteItems, SqliteItemsForThreads

    def for_threads() -> SqliteItemsForThreads:
        return SqliteItemsForThreads(name, path, HeldClock().now_s)

    return TakeOncePlace(name, for_threads, lambda: SqliteItems(for_threads(), timeout_s=timeout_s))


def items_at_a_session_server(name: str, where: StoreAddress, timeout_s: float) -> TakeOncePlace:
    """The embedded one's table, or that of a peer."""
    from coatcheck.stores.take_once.session_server import SessionServerRequests

    return _networked(name, where, SessionServerRequests, timeout_s)


def _networked(
    name: str, where: StoreAddress, make_requests: Callable[[], ItemRequests], timeout_s: float
) -> TakeOncePlace:
    from coatcheck.stores.take_once.blocking import BlockingItems  # the parser of both is an extra
    from coatcheck.stores.take_once.networked import NetworkedItems

    return TakeOncePlace(
        name,
        lambda: BlockingItems(name, where, make_requests),
        lambda: NetworkedItems(name, where, make_requests(), timeout_s=timeout_s),
    )
