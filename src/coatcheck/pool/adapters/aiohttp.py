"""Outbound tokens for aiohttp (extra: ``aiohttp``).

```python
session = aiohttp.ClientSession(middlewares=[PoolMiddleware(async_pool, "SADMIN", origin="https://api.example.com")])
```
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, PoolError
from coatcheck.pool.adapters.exchange import MAX_ATTEMPTS, UpstreamTokens, refresh, refuse_async, report
from coatcheck.pool.adapters.streaming import AsyncStreams


class PoolMiddleware:
    """Gives each request of a ``ClientSession`` a leased token (mission D1).

    The keyword arguments are those of :class:`~.exchange.UpstreamTokens`; ``origin`` is needed, because
    redirects pass through here as well. A refused token is dropped
    and the request sent again, once after a login (mission D7); a request whose body is used up is not sent again.
    Requests raise the pool's errors. :meth:`settle` waits until all leases of finished responses are given back.
    """

    def __init__(self, pool: AsyncTokenPool, user: Any, **upstream: Any) -> None:
        if not isinstance(pool, AsyncTokenPool):
            raise ConfigError("PoolMiddleware needs an AsyncTokenPool")
        self._pool = pool
        self._exchange = UpstreamTokens(user, **upstream).with_origin("PoolMiddleware")
        self._streams = AsyncStreams(pool)
        # Never more than there are leases.
        self._ending: set[asyncio.Task[None]] = set()

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        exchange = self._exchange
        if not exchange.concerns(str(request.url)):
            return await handler(request)
        user = exchange.user_of(request)
        attempt = 0
        while True:
            attempt += 1
            held = await exchange.lend(self._pool, user, attempt).acquire()
            response = None
            try:
                response = await handler(exchange.prepare(request, held))
                if exchange.read_body:
                    await response.read()
                expired = exchange.is_expired(response)
                better = expired and await refuse_async(held)
                if not expired:
                    refresh(held, exchange.extract(response))
            except BaseException:
                # Nobody gets to see it, so nobody else closes it.
                if response is not None:
                    response.close()
                await self._end(user, held, failed=True)
                raise
            if not (better and _can_be_sent_again(request) and attempt < MAX_ATTEMPTS):
                await self._keep(user, held, response)
                return response
            response.close()
            await self._end(user, held)

    async def settle(self) -> None:
        """Wait until the leases of all responses that have ended are given back."""
        while self._ending:
            await asyncio.wait(list(self._ending))

    async def _keep(self, user: str, held: Any, response: aiohttp.ClientResponse) -> None:
        """The lease ends when the connection is let go: at the end of the body, or when the response is closed."""
        connection = response.connection
        if connection is None:
            await self._end(user, held)
            return
        loop = asyncio.get_running_loop()

        def end() -> None:
            task = loop.create_task(self._end(user, held, failed=not response.content.is_eof()))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

        self._streams.keep(held, response)
        connection.add_callback(end)

    async def _end(self, user: str, held: Any, *, failed: bool = False) -> None:
        self._streams.end(held)
        try:
            await held.release(failed=failed)
        except PoolError as error:
            report(user, error)


def _can_be_sent_again(request: aiohttp.ClientRequest) -> bool:
    return not getattr(request.body, "consumed", False)
