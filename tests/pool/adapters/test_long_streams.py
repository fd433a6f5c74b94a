"""A response that streams for longer than a lease lasts: the lease is extended, within a bound."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import requests

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, PoolEvent, PoolEventKind, TokenPool, TokenRow

from .test_async_clients import BY_HEADER, opened
from .test_sync_clients import OPENERS
from .upstream import CHUNK, Upstream

LEASE_S = 0.4
LIMIT_S = 60.0


def eventually(condition: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


async def in_time(condition: Callable[[], Awaitable[object]]) -> None:
    until = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.005)


class Watched:
    """The pool's clock, which the test moves, and what the pool says."""

    def __init__(self) -> None:
        self.events: list[PoolEvent] = []
        self.now = 1_000.0

    def clock(self) -> float:
        return self.now

    def fresh(self, rows: list[TokenRow]) -> bool:
        """Whether the one lease has most of its time before it."""
        (row,) = rows
        assert row.state == "leased", "it is over"
        assert row.deadline_in_s is not None
        return row.deadline_in_s > 0.9 * LEASE_S

    def told(self) -> list[str]:
        return [event.detail for event in self.events if event.kind is PoolEventKind.LEASE_NOT_EXTENDED]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def options(watched: Watched, **more: Any) -> dict[str, Any]:
    return {"per_user": 2, "lease": LEASE_S, "wait": "20s", "on_event": watched.events.append, **more}


def new_pool(upstream: Upstream, watched: Watched, **more: Any) -> TokenPool:
    return TokenPool(upstream.sign_in, **options(watched, clock=watched.clock, **more))


def new_async_pool(upstream: Upstream, watched: Watched, **more: Any) -> AsyncTokenPool:
    return AsyncTokenPool(upstream.sign_in, **options(watched, clock=watched.clock, **more))


def live_on(pool: TokenPool, watched: Watched, steps: int = 6) -> None:
    """Two and more of a lease's times go by, and each time it is extended."""
    for _ in range(steps):
        watched.now += LEASE_S * 0.6
        eventually(lambda: watched.told() or watched.fresh(pool.list("ANN")))


async def live_on_async(pool: AsyncTokenPool, watched: Watched, steps: int = 6) -> None:
    async def fresh() -> bool:
        return bool(watched.told()) or watched.fresh(await pool.list("ANN"))

    for _ in range(steps):
        watched.now += LEASE_S * 0.6
        await in_time(fresh)


def begin(session: Any) -> tuple[Any, Any]:
    """A response whose first part is read, and what is left of it."""
    if isinstance(session, requests.Session):
        response = session.get("/drip", stream=True)
        parts = response.iter_content(len(CHUNK))
    else:
        response = session.send(session.build_request("GET", "/drip"), stream=True)
        parts = response.iter_bytes(len(CHUNK))
    assert next(parts) == CHUNK
    return response, parts


@pytest.mark.parametrize("library", sorted(OPENERS))
def test_a_lease_lives_while_its_response_streams(library: str, upstream: Upstream, watched: Watched) -> None:
    with new_pool(upstream, watched) as pool, OPENERS[library](pool, upstream, **BY_HEADER) as session:
        _, parts = begin(session)
        live_on(pool, watched)
        upstream.go_on.set()
        assert b"".join(parts) == CHUNK
        assert session.get("/me").text == "ANN1", "the token is the next caller's"
        stats = pool.stats()["ANN"]
        assert (stats.free, stats.leased, stats.lost_total) == (1, 0, 0)
    assert (upstream.logins, watched.events) == (1, [])


@pytest.mark.parametrize("library", ["aiohttp", "httpx", "httpx2_transport"])
def test_a_lease_lives_while_its_response_streams_in_asyncio(
    library: str, upstream: Upstream, watched: Watched
) -> None:
    async def run() -> None:
        async with (
            new_async_pool(upstream, watched) as pool,
            opened(library, pool, upstream, **BY_HEADER) as client,
        ):
            if library == "aiohttp":
                async with client.client.get("/drip") as response:
                    await live_on_async(pool, watched)
                    upstream.go_on.set()
                    assert await response.read() == CHUNK * 2
            else:
                async with client.client.stream("GET", "/drip") as response:
                    await live_on_async(pool, watched)
                    upstream.go_on.set()
                    assert await response.aread() == CHUNK * 2
            await client.settle()
            stats = (await pool.stats())["ANN"]
            assert (stats.free, stats.leased, stats.lost_total) == (1, 0, 0)

    asyncio.run(run())
    assert (upstream.logins, watched.events) == (1, [])


def test_a_lease_in_a_shared_store_is_extended_and_leaves_nothing_to_wait_for(
    upstream: Upstream, watched: Watched, tmp_path: Any
) -> None:
    more = options(watched, store=f"sqlite:///{tmp_path}/tokens.db", key=os.urandom(32), lease="4s")
    with TokenPool(upstream.sign_in, **more) as pool, OPENERS["requests"](pool, upstream, **BY_HEADER) as session:
        _, parts = begin(session)
        (first,) = pool.list("ANN")
        began = time.monotonic()

        def extended() -> bool:
            (row,) = pool.list("ANN")
            assert row.fencing == first.fencing
            return (row.deadline_in_s or 0.0) + time.monotonic() - began > 5.0

        eventually(extended)
        upstream.go_on.set()
        assert b"".join(parts) == CHUNK
        assert pool.held_leases() == 0
        assert pool.stats()["ANN"].free == 1
    assert watched.events == []


@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_a_stream_without_end_is_cut_off_from_its_token_after_max_stream(
    how: str, upstream: Upstream, watched: Watched
) -> None:
    async def run() -> None:
        async with (
            new_async_pool(upstream, watched, max_stream=2 * LEASE_S) as pool,
            opened("aiohttp", pool, upstream, **BY_HEADER) as client,
        ):
            async with client.client.get("/drip") as response:
                await live_on_async(pool, watched, 3)
                assert watched.told() == []
                await live_on_async(pool, watched, 1)
                watched.now += LEASE_S
                assert await pool.clean_up() == 1
                upstream.go_on.set()
                assert await response.read() == CHUNK * 2, "the answer is there all the same"
            await client.settle()

    if how == "asyncio":
        asyncio.run(run())
    else:
        limited = new_pool(upstream, watched, max_stream=2 * LEASE_S)
        with limited as pool, OPENERS["requests"](pool, upstream, **BY_HEADER) as session:
            _, parts = begin(session)
            live_on(pool, watched, 3)
            assert watched.told() == []
            live_on(pool, watched, 1)
            watched.now += LEASE_S
            assert pool.clean_up() == 1
            upstream.go_on.set()
            assert b"".join(parts) == CHUNK, "the answer is there all the same"
    assert [told.partition(": ")[2] for told in watched.told()] == ["max_stream is over"]


@pytest.mark.parametrize("how", ["threads", "asyncio"])
def test_a_lease_that_cannot_be_extended_is_told_once(how: str, upstream: Upstream, watched: Watched) -> None:
    async def run() -> None:
        async with (
            new_async_pool(upstream, watched) as pool,
            opened("httpx", pool, upstream, **BY_HEADER) as client,
            client.client.stream("GET", "/drip") as response,
        ):
            assert await pool.remove_token("ANN") == 1

            async def told() -> bool:
                return bool(watched.told())

            await in_time(told)
            upstream.go_on.set()
            assert await response.aread() == CHUNK * 2

    if how == "asyncio":
        asyncio.run(run())
    else:
        with new_pool(upstream, watched) as pool, OPENERS["httpx"](pool, upstream, **BY_HEADER) as session:
            _, parts = begin(session)
            assert pool.remove_token("ANN") == 1
            watched.now += 0.6 * LEASE_S
            eventually(watched.told)
            upstream.go_on.set()
            assert b"".join(parts) == CHUNK
    assert [each.rpartition(" ")[2] for each in watched.told()] == ["LeaseLost"]


def test_all_adapters_of_a_pool_have_one_thread_for_it(upstream: Upstream, watched: Watched) -> None:
    with (
        new_pool(upstream, watched) as pool,
        OPENERS["httpx"](pool, upstream, **BY_HEADER) as one,
        OPENERS["requests"](pool, upstream, **BY_HEADER) as other,
    ):
        streaming = begin(one), begin(other)
        assert [thread.name for thread in threading.enumerate()].count("coatcheck-pool-streams") == 1
        upstream.go_on.set()
        assert [b"".join(parts) for _, parts in streaming] == [CHUNK, CHUNK]


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_response_that_is_forgotten_is_extended_no_more(library: str, upstream: Upstream, watched: Watched) -> None:
    with new_pool(upstream, watched) as pool, OPENERS[library](pool, upstream, **BY_HEADER) as session:
        response, parts = begin(session)
        del response, parts
        gc.collect()
        eventually(lambda: "coatcheck-pool-streams" not in {thread.name for thread in threading.enumerate()})
        watched.now += LEASE_S
        assert pool.clean_up() == 1
    assert watched.told() == []


def test_a_wrong_max_stream_is_refused(upstream: Upstream) -> None:
    with pytest.raises(ConfigError, match="max_stream"):
        TokenPool(upstream.sign_in, max_stream="soon")
