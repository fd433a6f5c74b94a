"""The adapter for the URL of a store of items; the only place that chooses one."""

from __future__ import annotations

import time
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.host_clock import HeldClock
from coatcheck.stores.address import StoreAddress, parse_url
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.take_once.port import TakeOnceStore

MAX_FARM_NAME_BYTES: Final = 64


def open_items(address: SessionServerAddress, farm: str, timeout_s: float) -> TakeOnceStore:
    """A store of items, not yet connected. Calls end within ``timeout_s`` (seconds).

    Raises:
        ConfigError: a farm's name that Redis would take for two.
    """
    if not farm or len(farm.encode()) > MAX_FARM_NAME_BYTES or set(farm) & set("{}\r\n"):
        raise ConfigError(f"farm: a name of 1 to {MAX_FARM_NAME_BYTES} bytes without braces is needed, not {farm!r}")
    parts = address.parts
    match parts.scheme:
        case "memory":
            from coatcheck.stores.take_once.memory import MemoryItems

            return MemoryItems(address.name, time.monotonic)
        case "sqlite":
            from coatcheck.stores.take_once.sqlite import SqliteItems

            return SqliteItems(address.name, parts.path, HeldClock().now_s, timeout_s=timeout_s)
        case "coatcheck":
            from coatcheck.stores.take_once.session_server import SessionServerItems

            where = StoreAddress(
                host=parts.host,
                port=parts.port or 0,
                path=parts.path,
                password=parts.password,
                ours=True,
                name=address.name if address.proves_its_name else "",
            )
            return SessionServerItems(address.name, where, timeout_s=timeout_s)
    from coatcheck.stores.take_once.valkey import ValkeyItems

    return ValkeyItems(address.name, parse_url(address.url), farm=farm, timeout_s=timeout_s)
