"""How the embedded session server's table of items is asked.

Items are beside its entries there and apart from them; they die with that process.
"""

from __future__ import annotations

from coatcheck import resp
from coatcheck.stores.greeting import Steps, say


class SessionServerRequests:
    """See :class:`coatcheck.stores.take_once.requests.ItemRequests`."""

    def prepare(self) -> Steps[None]:
        return say(())

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes:
        back = (after,) if after else ()
        return resp.command(b"CC.ITEM.PUT", key, b"%d" % life_ms, item, *back)

    def take(self, key: bytes, nonce: bytes) -> bytes:
        return resp.command(b"CC.ITEM.TAKE", key, nonce)

    def purge(self, key: bytes) -> bytes:
        return resp.command(b"CC.ITEM.PURGE", key)

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes) -> bytes:
        named = (instead_of,) if instead_of else ()
        return resp.command(b"CC.ITEM.AGREE", key, b"%d" % life_ms, proposal, *named)
