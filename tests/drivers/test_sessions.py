"""The sessions of one web server: opened once, closed tidily, shown to operators."""

from __future__ import annotations

import asyncio
import gc
import os
import time

import pytest

import in_hand
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.events import EventKind
from coatcheck.replication.copies import Written
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import Store
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec

from .trade import begun, changed, opened, trade


class CountingStore(MemoryStore):
    """Refuses to open ``failures`` times."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__("counting", time.monotonic)
        self.failures, self.opened = failures, 0

    async def open(self) -> None:
        await asyncio.sleep(0)
        self.opened += 1
        if self.opened <= self.failures:
            raise ConfigError("the folder does not exist")
        await super().open()


def one(store: MemoryStore) -> Sessions:
    return Sessions(farm="farm", server_name="web", stores=[store], ring=KeyRing([b"k" * 32]), copies=1)


def test_many_requests_at_once_open_the_stores_once() -> None:
    async def story() -> None:
        store = CountingStore()
        sessions = one(store)
        await asyncio.gather(*(sessions.start() for _ in range(10)))
        await sessions.start()
        assert store.opened == 1
        assert sessions.is_open
        await sessions.aclose()
        assert not sessions.is_open

    asyncio.run(story())


def test_a_failed_open_is_told_to_everyone_who_waits_and_can_be_tried_again() -> None:
    async def story() -> None:
        store = CountingStore(failures=1)
        sessions = one(store)
        told = await asyncio.gather(*(sessions.start() for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in told] == [ConfigError] * 5
        await sessions.start()
        assert sessions.is_open
        assert store.opened == 2
        await sessions.aclose()

    asyncio.run(story())


def test_before_open_there_is_a_clear_error() -> None:
    with pytest.raises(CoatcheckError, match="not started"):
        _ = one(MemoryStore("one", time.monotonic)).driver


def test_opened_again_after_closing_it_goes_on_and_collects_nothing() -> None:
    async def story() -> None:
        store = MemoryStore("one", time.monotonic)
        sessions = one(store)
        await sessions.start()
        issue = await begun(sessions, n=1)
        watchers = len(store._reachability._watchers)
        for _ in range(5):
            await sessions.aclose()
            await sessions.start()
        assert len(store._reachability._watchers) == watchers
        assert await opened(sessions, issue) == {"n": 1}
        assert (await changed(sessions, issue, lambda session: session.update(n=2))).login is False
        await sessions.aclose()

    asyncio.run(story())


@pytest.mark.parametrize("durability", ["async", "one"])
def test_closing_settles_what_was_acknowledged_early(durability: str) -> None:
    async def story() -> None:
        replication = ReplicationPolicy(lease_s=0.05, durability=durability)  # type: ignore[arg-type]
        async with trade(2, replication=replication) as farm:
            home = await farm.server()
            issue = await begun(home, n=0)
            for store in farm.stores:
                store.turns = 200
            issue = await changed(home, issue, lambda session: session.update(n=1))
            await home.aclose()
            for store in farm.stores:
                store.turns = 1
                await store.open()
            other = await farm.server()
            assert await opened(other, issue) == {"n": 1}
            assert not home.events[EventKind.EARLY_WRITE_LOST]

    asyncio.run(story())


def test_an_early_acknowledged_write_that_is_lost_is_reported() -> None:
    async def story() -> None:
        async with trade(2, replication=ReplicationPolicy(lease_s=5.0, durability="async")) as farm:
            home = await farm.server()
            session = await opened(home, await begun(home, n=0))
            assert session is not None
            session["n"] = 1
            assert in_hand.must_save(home.lifecycle, session)
            for store in farm.stores:
                await store.aclose()
                home._world._reachable[store.name] = True  # it has not noticed yet
            saved = await in_hand.saved(home, session)
            assert saved.written == Written(0, 2)
            assert saved.issue is None, "no token speaks of it yet"
            await home.driver.settle(60)
            assert home.events[EventKind.EARLY_WRITE_LOST] == 1
            last = home.status()["last_events"]["copies.early_write_lost"]
            assert "no_session_server_answers" in last
            for store in farm.stores:
                await store.open()

    asyncio.run(story())


def test_operators_find_show_and_close_a_session() -> None:
    async def story() -> None:
        async with trade(3) as farm:
            home, other = await farm.server(), await farm.server()
            issues = [await begun(home, n=number) for number in range(5)]
            key = issues[2].token.key
            listed = await other.list_sessions()
            assert {info.key for info in listed} == {issue.token.key.hex() for issue in issues}
            assert all(info.state == "live" and len(info.copies) == 2 and info.data is None for info in listed)
            assert len(await other.list_sessions(limit=2)) == 2
            shown = await other.show(key)
            assert shown is not None
            assert shown.data == {"n": 2}
            puts = sum(store.puts for store in farm.stores)
            assert await other.show(b"?" * 16) is None
            assert sum(store.puts for store in farm.stores) == puts, "looking claims nothing"
            closed = await other.close_key(key)
            assert (closed.holds, closed.servers) == (3, 3)
            assert await opened(home, issues[2]) is None
            after = await other.show(key)
            assert after is not None
            assert (after.state, after.data) == ("closed", None)

    asyncio.run(story())


@pytest.mark.parametrize("verb", ["close", "clear", "regenerate"])
def test_who_closes_a_session_that_was_only_ever_here_waits_for_no_lease(verb: str) -> None:
    async def story() -> None:
        async with trade(2, replication=ReplicationPolicy(lease_s=8.0)) as farm:
            home, other = await farm.server(), await farm.server()
            issue = await begun(home, n=1)
            started = time.monotonic()
            await changed(home, issue, lambda session: getattr(session, verb)())
            assert time.monotonic() - started < 6
            assert await opened(other, issue) is None, "which waits for what is left of a lease: nobody told it"

    asyncio.run(story())


@pytest.mark.parametrize("raw", [b"", b"\x00", b"x" * 37, b"\xff" * 1000])
def test_a_notice_that_makes_no_sense_is_an_event(raw: bytes) -> None:
    async def story() -> None:
        async with trade(1, replication=ReplicationPolicy(lease_s=1.0)) as farm:
            home = await farm.server()
            issue = await begun(home, n=1)
            farm.stores[0].publish(home.server_id, raw)
            assert home.events[EventKind.CORRUPT_ENTRY] == 1
            assert await opened(home, issue) == {"n": 1}

    asyncio.run(story())


def test_a_stalled_process_asks_again_before_it_serves_from_its_cache() -> None:
    async def story() -> None:
        async with trade(2, replication=ReplicationPolicy(lease_s=60.0)) as farm:
            home = await farm.server()
            issue = await begun(home, n=1)
            guard = home._stall_guard
            assert guard is not None
            await asyncio.sleep(2 * StallGuard.BEAT_S)
            await opened(home, issue)
            assert home.lifecycle.open_cached(issue.token, False) is not None
            before = guard.stalls
            time.sleep(2 * StallGuard.STALL_S)  # frozen: nothing of this process runs
            await asyncio.sleep(2 * StallGuard.BEAT_S)
            assert guard.stalls > before
            assert home.lifecycle.open_cached(issue.token, False) is None
            assert await opened(home, issue) == {"n": 1}
            guard.stop()
            before = guard.stalls
            time.sleep(2 * StallGuard.STALL_S)
            await asyncio.sleep(2 * StallGuard.BEAT_S)
            assert guard.stalls == before

    asyncio.run(story())


def test_sessions_of_event_loops_that_are_gone_are_forgotten_and_those_that_come_back_know_the_keys() -> None:
    """As a test client has them, that brings an event loop to each request."""
    ring = KeyRing([b"k" * 32])

    def stores() -> list[Store]:
        return [MemoryStore("memory", time.monotonic)]

    sessions = Sessions(farm="farm", server_name="web", stores=stores, ring=ring, copies=1)

    def codecs() -> int:
        """Each remembers thousands of tokens."""
        gc.collect()
        return sum(isinstance(each, TokenCodec) for each in gc.get_objects())

    async def visit(is_tidy: bool) -> None:
        here = await sessions.on_this_loop()
        assert here is not sessions
        if not is_tidy:
            here._closes_with_loop = None  # its event loop ends without a word
            asyncio.get_running_loop().shutdown_asyncgens = nothing  # type: ignore[method-assign]

    async def nothing() -> None: ...

    async def story() -> None:
        await sessions.start()
        before = codecs()
        for at in range(6):
            await asyncio.to_thread(asyncio.run, visit(is_tidy=at % 2 == 0))
        await asyncio.to_thread(asyncio.run, visit(is_tidy=True))
        assert codecs() <= before
        await sessions.aclose()

    asyncio.run(story())
    sessions.change_keys([b"k" * 32, b"n" * 32], 1)

    async def again() -> None:
        await sessions.start()
        text = sessions.seal(await begun(sessions))
        await sessions.aclose()
        assert TokenCodec(KeyRing([b"n" * 32]), "anonymous", "farm", os.urandom).open(text)

    asyncio.run(again())
