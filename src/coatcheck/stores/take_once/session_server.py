"""The client of the embedded session server's table of items."""

from __future__ import annotations

from coatcheck import resp
from coatcheck.event_log import log_event
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.events import EventSink
from coatcheck.stores.link import DEFAULT_TIMEOUT_S, Link
from coatcheck.stores.take_once.networked import NetworkedItems


class SessionServerItems(NetworkedItems):
    """Keeps items in a :class:`coatcheck.session_server.server.SessionServer`, beside its entries and apart from them.

    They die with that process. Every call ends within ``timeout_s`` (seconds).
    """

    def __init__(
        self, name: str, address: StoreAddress, *, timeout_s: float = DEFAULT_TIMEOUT_S, on_event: EventSink = log_event
    ) -> None:
        super().__init__(Link(name, address, timeout_s=timeout_s, on_event=on_event), _Commands())


class _Commands:
    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes:
        back = (after,) if after else ()
        return resp.command(b"CC.ITEM.PUT", key, b"%d" % life_ms, item, *back)

    def take(self, key: bytes, nonce: bytes) -> bytes:
        return resp.command(b"CC.ITEM.TAKE", key, nonce)

    def purge(self, key: bytes) -> bytes:
        return resp.command(b"CC.ITEM.PURGE", key)
