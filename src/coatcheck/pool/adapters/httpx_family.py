"""httpx and its maintained fork, httpx2, have the same shapes under different names; here is what they share.

The flow of an ``Auth`` ends with the response's headers; a response whose body is still to come keeps its lease, by a
stream around its own, until the body is read or the response is closed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any, ClassVar

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, PoolError, TokenPool
from coatcheck.pool.adapters.exchange import (
    MAX_ATTEMPTS,
    UpstreamTokens,
    log,
    origin_of,
    refresh,
    refuse,
    refuse_async,
    report,
)
from coatcheck.pool.adapters.streaming import AsyncStreams, streams_of


class LeasedStream:
    """A response body that ends its lease with itself."""

    def __init__(self, stream: Any, end: Callable[[bool], None]) -> None:
        self._stream = stream
        self._end = end
        self._complete = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream
        self._complete = True

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._end(self._complete)


class AsyncLeasedStream:
    """The same for asyncio."""

    def __init__(self, stream: Any, end: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
        self._stream = stream
        self._end = end
        self._complete = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk
        self._complete = True

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._end(self._complete)


def own_answer(asked: Any, response: Any) -> Any:
    """The last answer of the host that was asked: a redirect may have led to another, whose word does not count."""
    here = origin_of(str(asked.url))
    answers = [response, *reversed(response.history)]
    return next((each for each in answers if origin_of(str(each.request.url)) == here), response)


def take_over(exchange: UpstreamTokens, held: Any, asked: Any, own: Any, response: Any, *, refused: bool) -> None:
    """The refreshed token; unless a redirect has taken the token to another host, which ends its use.

    ``refused``: the answer refuses a token that is kept all the same; it brings no other one.
    """
    here = origin_of(str(asked.url))
    for each in (*response.history, response):
        there = origin_of(str(each.request.url))
        if there != here and any(held.token in value for value in each.request.headers.values()):
            log.warning("a redirect took a token of %r to %s; use PoolTransport, which does not", held.user, there)
            held.drop(sign_out=True)
            return
    if not refused:
        refresh(held, exchange.extract(own))


class SyncFlow:
    """An authentication flow for a ``Client``: check out, send, retry once after a login, check in."""

    stream_class: ClassVar[type]
    byte_stream: ClassVar[type]

    def __init__(self, pool: TokenPool, user: Any, **upstream: Any) -> None:
        if not isinstance(pool, TokenPool):
            raise ConfigError("PoolAuth needs a TokenPool; AsyncPoolAuth is for an AsyncTokenPool")
        self._pool = pool
        self._exchange = UpstreamTokens(user, **upstream)
        self._streams = streams_of(pool)

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        exchange = self._exchange
        if not exchange.concerns(str(request.url)):
            yield request
            return
        user = exchange.user_of(request)
        again = isinstance(request.stream, self.byte_stream)
        attempt = 0
        while True:
            attempt += 1
            held = exchange.lend(self._pool, user, attempt).acquire()
            try:
                asked = exchange.prepare(request, held)
                response = yield asked
                own = own_answer(asked, response)
                if exchange.read_body:
                    own.read()
                refused = exchange.is_expired(own)
                if not refused or not refuse(held):
                    take_over(exchange, held, asked, own, response, refused=refused)
                    self._keep(user, held, response)
                    return
            except BaseException:
                self._end(user, held, failed=True)
                raise
            self._end(user, held)
            if not again or attempt >= MAX_ATTEMPTS:
                return

    def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        raise ConfigError("PoolAuth is for a Client; an AsyncClient needs AsyncPoolAuth")

    def _keep(self, user: str, held: Any, response: Any) -> None:
        if response.is_closed:
            self._end(user, held)
            return

        def end(complete: bool) -> None:
            if held.fencing:
                self._end(user, held, failed=not complete)

        response.stream = stream = self.stream_class(response.stream, end)
        self._streams.keep(held, stream)

    def _end(self, user: str, held: Any, *, failed: bool = False) -> None:
        self._streams.end(held)
        try:
            held.release(failed=failed)
        except PoolError as error:
            report(user, error)


class AsyncFlow:
    """The same for an ``AsyncClient``."""

    stream_class: ClassVar[type]
    byte_stream: ClassVar[type]

    def __init__(self, pool: AsyncTokenPool, user: Any, **upstream: Any) -> None:
        if not isinstance(pool, AsyncTokenPool):
            raise ConfigError("AsyncPoolAuth needs an AsyncTokenPool; PoolAuth is for a TokenPool")
        self._pool = pool
        self._exchange = UpstreamTokens(user, **upstream)
        self._streams = AsyncStreams(pool)

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        exchange = self._exchange
        if not exchange.concerns(str(request.url)):
            yield request
            return
        user = exchange.user_of(request)
        again = isinstance(request.stream, self.byte_stream)
        attempt = 0
        while True:
            attempt += 1
            held = await exchange.lend(self._pool, user, attempt).acquire()
            try:
                asked = exchange.prepare(request, held)
                response = yield asked
                own = own_answer(asked, response)
                if exchange.read_body:
                    await own.aread()
                refused = exchange.is_expired(own)
                if not refused or not await refuse_async(held):
                    take_over(exchange, held, asked, own, response, refused=refused)
                    await self._keep(user, held, response)
                    return
            except BaseException:
                await self._end(user, held, failed=True)
                raise
            await self._end(user, held)
            if not again or attempt >= MAX_ATTEMPTS:
                return

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        raise ConfigError("AsyncPoolAuth is for an AsyncClient; a Client needs PoolAuth")

    async def _keep(self, user: str, held: Any, response: Any) -> None:
        if response.is_closed:
            await self._end(user, held)
            return

        async def end(complete: bool) -> None:
            if held.fencing:
                await self._end(user, held, failed=not complete)

        response.stream = stream = self.stream_class(response.stream, end)
        self._streams.keep(held, stream)

    async def _end(self, user: str, held: Any, *, failed: bool = False) -> None:
        self._streams.end(held)
        try:
            await held.release(failed=failed)
        except PoolError as error:
            report(user, error)


class SyncTransport:
    """The same below the client, which follows redirects above it: each request on the way is judged by itself."""

    auth_class: ClassVar[Callable[..., Any]]
    request_class: ClassVar[Callable[..., Any]]
    transport_class: ClassVar[Callable[..., Any]]

    def __init__(self, pool: TokenPool, user: Any, *, transport: Any = None, **upstream: Any) -> None:
        UpstreamTokens(user, **upstream).with_origin(type(self).__name__)
        self._auth = self.auth_class(pool, user, **upstream)
        self._transport = transport or self.transport_class()

    def handle_request(self, request: Any) -> Any:
        flow = self._auth.sync_auth_flow(a_copy(self.request_class, request))
        try:
            asked = next(flow)
            while True:
                response = self._transport.handle_request(asked)
                try:
                    response.request = asked
                    try:
                        asked = flow.send(response)
                    except StopIteration:
                        return response
                    response.read()
                except BaseException:
                    response.close()
                    raise
        finally:
            flow.close()

    def close(self) -> None:
        self._transport.close()


class AsyncTransport:
    """The same for an ``AsyncClient``."""

    auth_class: ClassVar[Callable[..., Any]]
    request_class: ClassVar[Callable[..., Any]]
    transport_class: ClassVar[Callable[..., Any]]

    def __init__(self, pool: AsyncTokenPool, user: Any, *, transport: Any = None, **upstream: Any) -> None:
        UpstreamTokens(user, **upstream).with_origin(type(self).__name__)
        self._auth = self.auth_class(pool, user, **upstream)
        self._transport = transport or self.transport_class()

    async def handle_async_request(self, request: Any) -> Any:
        flow = self._auth.async_auth_flow(a_copy(self.request_class, request))
        try:
            asked = await anext(flow)
            while True:
                response = await self._transport.handle_async_request(asked)
                try:
                    response.request = asked
                    try:
                        asked = await flow.asend(response)
                    except StopAsyncIteration:
                        return response
                    await response.aread()
                except BaseException:
                    await response.aclose()
                    raise
        finally:
            await flow.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


def a_copy(request_class: Callable[..., Any], request: Any) -> Any:
    """Redirects start from the client's own request, which must not carry the token to other hosts."""
    return request_class(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )
