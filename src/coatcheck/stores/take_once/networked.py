"""Stores of items on the other side of a link, for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis

from coatcheck.event_log import log_event
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.events import EventSink
from coatcheck.stores.greeting import HandshakeRefused
from coatcheck.stores.link import DEFAULT_TIMEOUT_S, Link
from coatcheck.stores.port import Unreachable
from coatcheck.stores.take_once.requests import ItemRequests, as_agreement, as_flag, as_item, must_prepare
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import NEVER_STORED, NOTHING, check_agreement, check_key, check_nonce, check_put


class NetworkedItems:
    """See :class:`coatcheck.take_once.port.TakeOnceStore`. Every call ends within ``timeout_s`` (seconds)."""

    def __init__(
        self,
        name: str,
        address: StoreAddress,
        requests: ItemRequests,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_event: EventSink = log_event,
    ) -> None:
        self.name = name
        self._link = Link(name, address, prepare=requests.prepare, timeout_s=timeout_s, on_event=on_event)
        self._requests = requests

    @property
    def reachable(self) -> bool:
        return self._link.reachability.now

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        check_put(key, item, life_ms, after)
        return as_flag(await self._ask(lambda: self._requests.put(key, item, life_ms, after)), self.name)

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        check_key(key)
        check_nonce(nonce)
        return as_item(await self._ask(lambda: self._requests.take(key, nonce)), self.name)

    async def purge(self, key: bytes) -> bool:
        check_key(key)
        return as_flag(await self._ask(lambda: self._requests.purge(key)), self.name)

    async def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes = NOTHING) -> bytes:
        check_agreement(key, proposal, life_ms)
        return as_agreement(
            await self._ask(lambda: self._requests.agree(key, proposal, life_ms, instead_of)), self.name
        )

    async def open(self) -> None:
        await self._link.open()

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _ask(self, make: Callable[[], bytes]) -> Any:
        reply = await self._call(make())
        if must_prepare(reply):
            await self._prepare_again()
            reply = await self._call(make())
        return reply

    async def _prepare_again(self) -> None:
        steps = self._requests.prepare()
        try:
            request = next(steps)
            while True:
                reply = await self._call(request)
                if isinstance(reply, hiredis.ReplyError):
                    raise TakeOnceUnavailable(f"{self.name}: {reply}")
                request = steps.send(reply)
        except StopIteration:
            return
        except HandshakeRefused as refused:
            raise TakeOnceUnavailable(f"{self.name}: {refused}") from None

    async def _call(self, request: bytes) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(reply: Any) -> None:
            if not answered.done():
                answered.set_result(reply)

        self._link.call(request, settle)
        reply = await answered
        if isinstance(reply, Unreachable):
            raise TakeOnceUnavailable(f"{self.name}: {reply.why}")
        return reply
