"""httpx, httpx2 and aiohttp with asyncio do the same with leases; here over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest

import coatcheck.pool.adapters.httpx as httpx_adapter
import coatcheck.pool.adapters.httpx2 as httpx2_adapter
from coatcheck.pool import AsyncTokenPool
from coatcheck.pool.adapters.aiohttp import PoolMiddleware
from coatcheck.pool.adapters.placing import cookie, from_cookie, from_header, header

from .upstream import CHUNK, CHUNKS, HEADER, Upstream

BY_HEADER = {"apply": header(HEADER), "extract": from_header(HEADER)}
BY_COOKIE = {"apply": cookie("SID"), "extract": from_cookie("SID")}
LIBRARIES = ["aiohttp", "httpx", "httpx2", "httpx_transport", "httpx2_transport"]
FAILURES = (httpx.TransportError, httpx2.TransportError, aiohttp.ClientError, TimeoutError)


class Fetching:
    """The few words that the tests need, in each library's dialect."""

    def __init__(self, client: Any, settle: Callable[[], Awaitable[None]]) -> None:
        self.client = client
        self.settle = settle

    async def fetch(self, path: str, method: str = "GET", **named: Any) -> tuple[int, bytes]:
        if isinstance(self.client, aiohttp.ClientSession):
            async with self.client.request(method, path, **named) as response:
                found = response.status, await response.read()
        else:
            response = await self.client.request(method, path, **named)
            found = response.status_code, response.content
        await self.settle()
        return found


@asynccontextmanager
async def opened(library: str, pool: AsyncTokenPool, upstream: Upstream, **how: Any) -> AsyncIterator[Fetching]:
    async def at_once() -> None:
        pass

    if library == "aiohttp":
        middleware = PoolMiddleware(pool, "ANN", **{"origin": upstream.url, **how})
        async with aiohttp.ClientSession(upstream.url, middlewares=[middleware]) as session:
            yield Fetching(session, middleware.settle)
    else:
        name, _, placed = library.partition("_")
        module, adapter = (httpx, httpx_adapter) if name == "httpx" else (httpx2, httpx2_adapter)
        if placed:
            put = {"transport": adapter.AsyncPoolTransport(pool, "ANN", **{"origin": upstream.url, **how})}
        else:
            put = {"auth": adapter.AsyncPoolAuth(pool, "ANN", **how)}
        async with module.AsyncClient(base_url=upstream.url, **put) as client:
            yield Fetching(client, at_once)


def new_pool(upstream: Upstream, **options: Any) -> AsyncTokenPool:
    async def sign_in(user: str) -> str:
        return upstream.sign_in(user)

    return AsyncTokenPool(**{"login": sign_in, "per_user": 2, "wait": "5s", **options})


async def free_and_leased(pool: AsyncTokenPool) -> tuple[int, int]:
    stats = (await pool.stats())["ANN"]
    return stats.free, stats.leased


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("how", [BY_HEADER, BY_COOKIE], ids=["header", "cookie"])
def test_one_login_serves_many_calls_and_tokens_are_renewed(
    library: str, how: dict[str, Any], upstream: Upstream
) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **how) as client:
            assert [await client.fetch("/me") for _ in range(5)] == [(200, b"ANN1")] * 5
            assert await free_and_leased(pool) == (1, 0)

    asyncio.run(run())
    assert (upstream.logins, upstream.refusals) == (1, 0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_expired_tokens_are_replaced_by_one_login(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            for held in [await pool.lease("ANN").acquire() for _ in range(2)]:
                await held.release()
            upstream.expire_all()
            body = {"data": b"twice"} if library == "aiohttp" else {"content": b"twice"}
            assert await client.fetch("/echo", "POST", **body) == (200, b"twice")
            assert await free_and_leased(pool) == (1, 0)

    asyncio.run(run())
    assert (upstream.logins, upstream.refusals) == (3, 2)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_forbidden_page_costs_few_logins_and_no_other_call(library: str, upstream: Upstream) -> None:
    now = [1_000.0]

    async def run() -> None:
        clock = {"clock": lambda: now[0]}
        async with new_pool(upstream, **clock) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            for _ in range(10):
                assert (await client.fetch("/forbidden"))[0] == 401
                assert await client.fetch("/me") == (200, b"ANN1")
                now[0] += 0.09
            assert upstream.logins == 1, "the first of all calls was the forbidden one, with a fresh token"
            now[0] += 2.0
            assert (await client.fetch("/forbidden"))[0] == 401
            assert await client.fetch("/me") == (200, b"ANN2")
            assert await free_and_leased(pool) == (1, 0)

    asyncio.run(run())
    assert upstream.logins == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_body_that_is_a_stream_is_not_sent_twice(library: str, upstream: Upstream) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            await client.fetch("/me")
            upstream.expire_all()
            body = {"data": parts()} if library == "aiohttp" else {"content": parts()}
            status, content = await client.fetch("/echo", "POST", **body)
            # aiohttp keeps what an iterator brought, so it may be sent again; never half of it.
            assert (status, content) in ((401, b"expired"), (200, b"ab"))
            assert (await free_and_leased(pool))[1] == 0

    asyncio.run(run())


@pytest.mark.parametrize("library", LIBRARIES)
def test_fifty_tasks_share_two_tokens(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            answers = await asyncio.gather(*(client.fetch("/me") for _ in range(50)))
            assert [status for status, _ in answers] == [200] * 50
            free, leased = await free_and_leased(pool)
            assert 1 <= free <= 2 and leased == 0

    asyncio.run(run())
    assert upstream.logins <= 2 and upstream.double_uses == 0 and upstream.refusals == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_cancellation_gives_the_lease_back(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            await client.fetch("/me")
            tasks = [asyncio.create_task(client.fetch("/slow")) for _ in range(4)]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.settle()
            stats = (await pool.stats())["ANN"]
            assert (stats.leased, stats.waiting) == (0, 0)
            assert (await client.fetch("/me"))[0] == 200

    asyncio.run(run())


@pytest.mark.parametrize("library", LIBRARIES)
def test_broken_and_late_answers_give_the_lease_back(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            with pytest.raises(FAILURES):
                await client.fetch("/breaks")
            timeout = aiohttp.ClientTimeout(total=0.3) if library == "aiohttp" else 0.3
            with pytest.raises(FAILURES):
                await client.fetch("/slow", timeout=timeout)
            await client.settle()
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("library", LIBRARIES[1:])
def test_a_stream_holds_its_lease_until_it_is_read_or_closed(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            async with client.client.stream("GET", "/stream") as response:
                assert await free_and_leased(pool) == (0, 1)
                assert len(await response.aread()) == CHUNKS * len(CHUNK)
                assert await free_and_leased(pool) == (1, 0)
            async with client.client.stream("GET", "/stream") as response:
                async for _ in response.aiter_bytes():
                    break
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())
    assert upstream.double_uses == 0


def test_a_stream_of_aiohttp_holds_its_lease_until_it_is_read_or_closed(upstream: Upstream) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened("aiohttp", pool, upstream, **BY_HEADER) as client:
            async with client.client.get("/stream") as response:
                assert await free_and_leased(pool) == (0, 1)
                assert len(await response.read()) == CHUNKS * len(CHUNK)
                await client.settle()
                assert await free_and_leased(pool) == (1, 0)
            async with client.client.get("/stream") as response:
                await response.content.read(10)
            await client.settle()
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())
    assert upstream.double_uses == 0


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("library", ["aiohttp", "httpx_transport", "httpx2_transport"])
def test_redirects_to_another_origin_get_no_token(library: str, upstream: Upstream, status: int) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            follow = {} if library == "aiohttp" else {"follow_redirects": True}
            assert await client.fetch(f"/away?status={status}", **follow) == (status, b"elsewhere")
            # And what that host says about a token is not believed.
            assert await client.fetch("/me") == (200, b"ANN1")
            assert await client.fetch("/home", **follow) == (200, b"ANN1")
            assert await free_and_leased(pool) == (1, 0)

    asyncio.run(run())
    assert upstream.stray_tokens == []
    assert (upstream.logins, upstream.refusals) == (1, 0)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_token_that_httpx_took_to_another_host_is_not_used_again(
    library: str, upstream: Upstream, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with new_pool(upstream) as pool, opened(library, pool, upstream, **BY_HEADER) as client:
            assert (await client.fetch(f"/away?status={status}", follow_redirects=True))[0] == status
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())
    assert "PoolTransport" in caplog.text
    assert upstream.logins == 1


@pytest.mark.parametrize("callback", ["extract", "is_expired"])
def test_a_callback_that_fails_leaves_no_connection_open(upstream: Upstream, callback: str) -> None:
    seen: list[Any] = []

    def fail(response: Any) -> Any:
        seen.append(response)
        raise LookupError("on purpose")

    async def run() -> None:
        how = {**BY_HEADER, callback: fail}
        async with new_pool(upstream) as pool:
            middleware = PoolMiddleware(pool, "ANN", origin=upstream.url, **how)
            async with aiohttp.ClientSession(upstream.url, middlewares=[middleware]) as session:
                with pytest.raises(LookupError):
                    await session.get("/stream")
                assert [response.closed for response in seen] == [True]
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_lease_that_is_over_before_the_answer_keeps_the_answer(library: str, upstream: Upstream) -> None:
    async def run() -> None:
        async with (
            new_pool(upstream, lease="0.3s") as pool,
            opened(library, pool, upstream, **BY_HEADER) as client,
        ):
            assert await client.fetch("/slow") == (200, b"slow")
            assert await free_and_leased(pool) == (0, 0)

    asyncio.run(run())
