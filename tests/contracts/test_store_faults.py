"""The contract of networked stores under faults: real servers, killed, frozen and restarted."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from store_backends import (
    OWNER_A,
    NetworkedBackend,
    ask,
    entry,
    new_key,
    opened,
    run,
    until,
    version,
)

from coatcheck.stores.port import ACCEPTED, Store, Unreachable

IDLE_PING_S = 0.25
NOISE_S = 10.0
"""What a busy machine may add to a bound before a test calls it broken: without the bound it is for ever."""

V1 = version(1)
V1_NEXT = version(1, seq=1)


def answered_at_once(store: Store) -> None:
    """While the store is known to be away nobody waits, not even for a turn of the event loop."""
    replies: list[object] = []
    for _ in range(20):
        store.get(new_key(), replies.append)
        store.put(new_key(), None, entry(V1), replies.append)
    assert [type(reply) for reply in replies] == [Unreachable] * 40


def test_killed_and_restarted_empty(server: NetworkedBackend) -> None:
    async def story() -> None:
        changes: list[bool] = []
        heard: list[bytes] = []
        async with opened(server.client()) as store:
            store.watch(lambda name, reachable: changes.append(reachable))
            store.subscribe(OWNER_A[:3], heard.append)
            key = new_key()
            assert await ask(store.put, key, None, entry(V1)) == ACCEPTED
            server.kill()
            await until(lambda: not store.reachable, server.timeout_s + NOISE_S)
            assert changes == [False]
            answered_at_once(store)
            server.start()
            await until(lambda: store.reachable)
            assert changes == [False, True]
            assert await ask(store.get, key) is None, "it came back empty"
            assert await ask(store.put, key, None, entry(V1)) == ACCEPTED
            assert await ask(store.put, key, V1, entry(version(2, b"other..."))) == ACCEPTED
            await until(lambda: heard)

    run(story)


def test_killed_with_calls_in_flight(server: NetworkedBackend) -> None:
    async def story() -> None:
        async with opened(server.client()) as store:
            server.signal(signal.SIGSTOP)
            replies: list[object] = []
            for _ in range(100):
                store.put(new_key(), None, entry(V1), replies.append)
                store.get(new_key(), replies.append)
            await asyncio.sleep(0)
            server.kill()
            await until(lambda: len(replies) == 200, server.timeout_s + NOISE_S)
            assert all(isinstance(reply, Unreachable) for reply in replies)
            await asyncio.sleep(0.1)
            assert len(replies) == 200

    run(story)


def test_frozen_with_calls_outstanding(server: NetworkedBackend) -> None:
    async def story() -> None:
        changes: list[bool] = []
        async with opened(server.client()) as store:
            store.watch(lambda name, reachable: changes.append(reachable))
            key, lost = new_key(), new_key()
            await ask(store.put, key, None, entry(V1, b"kept"))
            server.signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                answers = await asyncio.gather(
                    ask(store.put, lost, None, entry(V1)), *[ask(store.get, key) for _ in range(50)]
                )
                took = time.monotonic() - began
                assert all(isinstance(answer, Unreachable) for answer in answers)
                assert server.timeout_s / 2 < took < server.timeout_s + NOISE_S
                assert store.reachable is False
                assert changes == [False]
                answered_at_once(store)
                await asyncio.sleep(1.5)  # it accepts connections all the while, and answers none
                assert store.reachable is False
                assert changes == [False]
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: store.reachable)
            # No late reply is taken for the reply of another call: each get answers its own key.
            for _ in range(50):
                got_lost, got = await asyncio.gather(ask(store.get, lost), ask(store.get, key))
                assert got.payload == b"kept"
                assert got_lost is None or got_lost.payload == b"payload"

    run(story)


def test_frozen_while_idle(server: NetworkedBackend) -> None:
    async def story() -> None:
        async with opened(server.client()) as store:
            await ask(store.get, new_key())
            server.signal(signal.SIGSTOP)
            try:
                await until(lambda: not store.reachable, IDLE_PING_S + server.timeout_s + NOISE_S)
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: store.reachable)

    run(story)


def test_stays_reachable_while_idle_and_healthy(server: NetworkedBackend) -> None:
    async def story() -> None:
        changes: list[bool] = []
        async with opened(server.client()) as store:
            store.watch(lambda name, reachable: changes.append(reachable))
            await asyncio.sleep(2 * (IDLE_PING_S + server.timeout_s))
            assert store.reachable
            assert changes == []

    run(story)


def test_our_own_loop_standing_still_is_not_the_servers_fault(server: NetworkedBackend) -> None:
    async def story() -> None:
        async with opened(server.client()) as store:
            waiting = [asyncio.ensure_future(ask(store.get, new_key())) for _ in range(10)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(2 * server.timeout_s)
            assert await asyncio.gather(*waiting) == [None] * 10
            assert store.reachable

    run(story)


def test_away_when_opened_and_there_later(server: NetworkedBackend) -> None:
    async def story() -> None:
        server.kill()
        changes: list[bool] = []
        store = server.client()
        store.watch(lambda name, reachable: changes.append(reachable))
        async with opened(store, reachable=False):
            assert store.reachable is False
            answered_at_once(store)
            server.start()
            await until(lambda: store.reachable)
            assert await ask(store.put, new_key(), None, entry(V1)) == ACCEPTED
            assert changes == [True]

    run(story)


def test_frozen_when_opened(server: NetworkedBackend) -> None:
    async def story() -> None:
        server.signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            async with opened(server.client(), reachable=False) as store:
                assert time.monotonic() - began < 1.0 + NOISE_S
                assert store.reachable is False
                server.signal(signal.SIGCONT)
                await until(lambda: store.reachable)
        finally:
            server.signal(signal.SIGCONT)

    run(story)


def test_closing_while_the_server_is_frozen(server: NetworkedBackend) -> None:
    async def story() -> None:
        store = server.client()
        await store.open()
        server.signal(signal.SIGSTOP)
        try:
            replies: list[object] = []
            store.put(new_key(), None, entry(V1), replies.append)
            store.scan(0, 10, replies.append)
            await asyncio.wait_for(store.aclose(), NOISE_S)
            assert len(replies) == 2
            assert all(isinstance(reply, Unreachable) for reply in replies)
        finally:
            server.signal(signal.SIGCONT)

    run(story)


def test_more_calls_than_the_bound_are_answered_and_counted(
    server: NetworkedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatcheck.stores.connection.MAX_OUTSTANDING_CALLS", 100)

    async def story() -> None:
        async with opened(server.client()) as store:
            await ask(store.get, new_key())  # what the store itself asks after connecting is answered by then
            replies: list[object] = []
            for _ in range(150):
                store.get(new_key(), replies.append)
            assert len(replies) == 50, "those above the bound are answered at once"
            await until(lambda: len(replies) == 150)
            assert sum(reply is None for reply in replies) == 100
            assert store.reachable

    run(story)


def test_a_frozen_server_does_not_make_us_keep_bytes_without_end(server: NetworkedBackend) -> None:
    async def story() -> None:
        async with opened(server.client()) as store:
            server.signal(signal.SIGSTOP)
            try:
                replies: list[object] = []
                big = entry(V1, bytes(1024 * 1024 - 100))
                for _ in range(60):
                    store.put(new_key(), None, big, replies.append)
                assert len(replies) >= 20, "the rest does not fit into the bound and the kernel's buffers"
                await until(lambda: len(replies) == 60, server.timeout_s + NOISE_S)
            finally:
                server.signal(signal.SIGCONT)

    run(story)
