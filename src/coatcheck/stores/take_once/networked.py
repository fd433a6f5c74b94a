"""What the stores of items behind a RESP link have in common: the port, and the meaning of their replies."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import hiredis

from coatcheck.stores.link import Link
from coatcheck.stores.port import Unreachable
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import MAX_ITEM_BYTES, NEVER_STORED, check_key, check_nonce, check_put


class ItemRequests(Protocol):
    """How one kind of server is asked."""

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes: ...

    def take(self, key: bytes, nonce: bytes) -> bytes: ...

    def purge(self, key: bytes) -> bytes: ...


class NetworkedItems:
    """A store on the other side of a link; see :class:`coatcheck.take_once.port.TakeOnceStore`."""

    def __init__(self, link: Link, requests: ItemRequests, scripts: tuple[bytes, ...] = ()) -> None:
        self.name = link.name
        self._link = link
        self._requests = requests
        self._scripts = scripts

    @property
    def reachable(self) -> bool:
        return self._link.reachability.now

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        check_put(key, item, life_ms, after)
        return self._flag(await self._ask(self._requests.put(key, item, life_ms, after)))

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        item = await self._ask(self._requests.take(key, nonce))
        if item is None:
            return None
        if not isinstance(item, bytes) or not 1 <= len(item) <= MAX_ITEM_BYTES:
            raise TakeOnceUnavailable(f"{self.name}: what came is no item")
        return item

    async def purge(self, key: bytes) -> bool:
        check_key(key)
        return self._flag(await self._ask(self._requests.purge(key)))

    async def open(self) -> None:
        await self._link.open()

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _ask(self, request: bytes) -> Any:
        reply = await self._call(request)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            # It was refused before anything happened, so it may be asked once more.
            for script in self._scripts:
                await self._call(script)
            reply = await self._call(request)
        if isinstance(reply, hiredis.ReplyError):
            raise TakeOnceUnavailable(f"{self.name}: {reply}")
        if isinstance(reply, Unreachable):
            raise TakeOnceUnavailable(f"{self.name}: {reply.why}")
        return reply

    async def _call(self, request: bytes) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(reply: Any) -> None:
            if not answered.done():
                answered.set_result(reply)

        self._link.call(request, settle)
        return await answered

    def _flag(self, reply: Any) -> bool:
        if reply not in (0, 1):
            raise TakeOnceUnavailable(f"{self.name}: neither yes nor no")
        return bool(reply)
