"""What leases by link rest on (protocol section 4): a heart-beat was answered, so no notice from before is missing."""

from __future__ import annotations

import asyncio
import signal
import time

import msgspec
from store_backends import (
    OWNER_A,
    OWNER_B,
    Backend,
    NetworkedBackend,
    RedisBackend,
    ask,
    entry,
    new_key,
    opened,
    run,
    until,
    version,
)

from coatcheck.stores.port import ACCEPTED, Store

PERIOD_S = 0.05
ROUNDS = 40
SILENCE_S = 6 * PERIOD_S
NOISE_S = 10.0


class Listener:
    """A client that says up to when it has heard everything."""

    def __init__(self, store: Store) -> None:
        self.beats: list[float] = []
        self.notices: list[bytes] = []
        store.subscribe(OWNER_A[:3], self.notices.append)
        store.watch_notices(lambda name, sent_at: self.beats.append(sent_at), PERIOD_S)

    def heard_after(self, moment: float) -> bool:
        return bool(self.beats) and self.beats[-1] > moment


def test_a_notice_is_here_before_the_answer_to_a_later_heart_beat(backend: Backend) -> None:
    async def story() -> None:
        writer, reader = backend.client(), backend.client()
        async with opened(writer, reader):
            listener = Listener(reader)
            if not backend.networked:
                await asyncio.sleep(SILENCE_S)
                assert listener.beats == [], "a store whose notices have no order with its replies never says so"
                return
            for number in range(1, ROUNDS + 1):
                key = new_key()
                assert await ask(writer.put, key, None, entry(version(1, OWNER_A))) == ACCEPTED
                assert await ask(writer.put, key, version(1, OWNER_A), entry(version(2, OWNER_B))) == ACCEPTED
                taken_at = time.monotonic()
                await until(lambda taken_at=taken_at: listener.heard_after(taken_at))
                assert len(listener.notices) == number
            assert listener.beats == sorted(listener.beats)

    run(story)


def test_heart_beats_are_regular_and_end_with_the_connection(server: NetworkedBackend) -> None:
    async def story() -> None:
        async with opened(server.client()) as store:
            listener = Listener(store)
            await until(lambda: len(listener.beats) >= 5)
            server.signal(signal.SIGSTOP)
            await until(lambda: not store.reachable, server.timeout_s + NOISE_S)
            stopped_at = time.monotonic()
            await asyncio.sleep(SILENCE_S)
            assert not listener.heard_after(stopped_at - server.timeout_s / 2), "nothing was answered"
            server.signal(signal.SIGCONT)
            await until(lambda: store.reachable)
            await until(lambda: listener.heard_after(stopped_at), NOISE_S)

    run(story)


def test_a_primary_that_was_demoted_is_not_heard(server: NetworkedBackend) -> None:
    """It answers PING, and reads; but who takes puts is another one."""
    if not isinstance(server, RedisBackend):
        return

    async def story() -> None:
        async with opened(server.client()) as store:
            listener = Listener(store)
            await until(lambda: listener.beats)
            assert server.raw(b"REPLICAOF", b"127.0.0.1", b"1").startswith(b"+OK")
            demoted_at = time.monotonic()
            await asyncio.sleep(2 * SILENCE_S)
            assert not listener.heard_after(demoted_at)
            assert store.reachable, "its heart-beats are answered, by an error"
            assert server.raw(b"REPLICAOF", b"NO", b"ONE").startswith(b"+OK")
            await until(lambda: listener.heard_after(demoted_at), NOISE_S)

    run(story)


def test_a_member_of_a_cluster_is_not_heard(server: NetworkedBackend) -> None:
    """Its notices come from other members, in an order of their own."""
    if not isinstance(server, RedisBackend):
        return
    server.stop()
    plain = server.command
    server.command = lambda: [*plain(), "--cluster-enabled", "yes"]  # type: ignore[method-assign]
    server.start()

    async def story() -> None:
        client = server.client()
        client._link.address = _without_database(client._link.address)  # type: ignore[attr-defined]
        async with opened(client) as store:
            listener = Listener(store)
            await asyncio.sleep(SILENCE_S)
            assert listener.beats == []

    run(story)


def _without_database(address: object) -> object:
    return msgspec.structs.replace(address, db=0)  # type: ignore[type-var]
