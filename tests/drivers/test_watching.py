"""Who is told that a session is over, when, and what it costs: one watch for a session, few questions, named bounds."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

import in_hand
from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.watching import Watching
from coatcheck.errors import CoatcheckError
from coatcheck.replication.effects import GetReply
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing

DEADLINE_S = 30.0
LEASE_S = 0.4


class CountingStore(MemoryStore):
    """Counts the questions; may be deaf to messages, or hold its answers back."""

    asked = 0
    of_everybody = b""
    """The key of what every web server asks for over and over: whether all sessions were closed."""
    gate: asyncio.Event | None = None

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        self.asked += key != self.of_everybody
        if self.gate is None:
            super().get(key, reply)
        else:
            super().get(key, lambda answer: self._later(reply, answer))

    def _later(self, reply: Callable[[GetReply], None], answer: GetReply) -> None:
        gate = self.gate
        assert gate is not None

        async def wait() -> None:
            await gate.wait()
            reply(answer)

        self.task = asyncio.get_running_loop().create_task(wait())


class Farm:
    def __init__(self, lease_s: float, policy: SessionPolicy) -> None:
        self.stores = [CountingStore(name, time.monotonic) for name in ("one", "two")]
        ring = KeyRing([os.urandom(32)])
        self.web = [
            Sessions(
                farm="farm", server_name=name, stores=self.stores, ring=ring, policy=policy,
                replication=ReplicationPolicy(lease_s=lease_s),
            )
            for name in ("web-1", "web-2")
        ]  # fmt: skip

        for store in self.stores:
            store.of_everybody = self.web[0].users.keys_of("")[0]

    async def begin(self) -> Session:
        session = Session()
        session["n"] = 1
        await in_hand.saved(self.web[0], session)
        return session

    async def open_at(self, server: int, session: Session) -> Session:
        """The session at another web server, which claims it."""
        assert session._request.shown is not None
        opened = await in_hand.opened(self.web[server], session._request.shown)
        assert opened is not None
        return opened

    @property
    def asked(self) -> int:
        return sum(store.asked for store in self.stores)

    def lose_notices(self) -> None:
        for store in self.stores:
            store._bulletin.clear()


@asynccontextmanager
async def farm(lease_s: float = LEASE_S, **policy: int) -> AsyncIterator[Farm]:
    made = Farm(lease_s, SessionPolicy(**policy))  # type: ignore[arg-type]
    for sessions in made.web:
        await sessions.start()
    try:
        yield made
    finally:
        for sessions in made.web:
            await sessions.aclose()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watching, "SHORTEST_PAUSE_S", LEASE_S)


def key_of(session: Session) -> bytes:
    assert session._request.copy_held is not None
    return session._request.copy_held.key


def test_a_logout_here_is_told_at_once() -> None:
    async def story() -> None:
        async with farm(lease_s=3600.0) as made:
            session = await made.begin()
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(0)
            await made.web[0].close_key(key_of(session))
            assert await within(told) is SessionEnd.CLOSED
            assert len(made.web[0].watching) == 0

    asyncio.run(story())


async def within(told: asyncio.Task[SessionEnd]) -> SessionEnd:
    done, _ = await asyncio.wait([told], timeout=DEADLINE_S)
    assert done, "nobody was told"
    return told.result()


async def session_ended(made: Farm, server: int, session: Session) -> SessionEnd:
    return await made.web[server].ended(session._request)


@pytest.mark.parametrize("notices", [True, False])
def test_a_logout_elsewhere_is_told_though_the_notice_is_lost(notices: bool) -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(0)
            if not notices:
                made.lose_notices()
            await made.open_at(1, session)
            await made.web[1].close_key(key_of(session))
            assert await within(told) is SessionEnd.CLOSED

    asyncio.run(story())


def test_a_notice_ends_a_long_lease_and_the_question_is_asked_at_once() -> None:
    async def story() -> None:
        async with farm(lease_s=3600.0) as made:
            session = await made.begin()
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(0.05)
            before = made.asked
            await asyncio.sleep(0.5)
            assert made.asked == before, "while the lease holds nobody is asked"
            closing = asyncio.create_task(made.web[1].close_key(key_of(session)))
            assert await within(told) is SessionEnd.CLOSED
            closing.cancel()  # it would wait for the hour of the lease

    asyncio.run(story())


def test_thousands_of_connections_of_one_session_are_one_question() -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            await made.open_at(1, session)  # so that web-1 has no lease, and must ask
            told: list[SessionEnd] = []
            watching = made.web[0].watching
            watches = [watching.watch(key_of(session), told.append) for _ in range(5000)]
            before, begun = made.asked, time.monotonic()
            await asyncio.sleep(4 * LEASE_S)
            rounds = (time.monotonic() - begun) / LEASE_S + 1
            assert 2 <= (made.asked - before) / len(made.stores) <= rounds
            for watch in watches[::2]:
                watching.forget(watch)
            await made.web[1].close_key(key_of(session))
            async with asyncio.timeout(DEADLINE_S):
                while len(told) < 2500:
                    await asyncio.sleep(0.01)
            assert told == [SessionEnd.CLOSED] * 2500

    asyncio.run(story())


def test_a_notice_of_before_the_lease_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has claimed the session again by then: its lease says all, and nobody wakes up for the notice again."""
    looks = []
    go_on = Watching._go_on
    monkeypatch.setattr(Watching, "_go_on", lambda *arguments: (looks.append(1), go_on(*arguments)))

    async def story() -> None:
        async with farm(lease_s=3600.0) as made:
            session = await made.begin()
            watching = made.web[0].watching
            watching.watch(key_of(session), lambda end: None)
            watching.noticed(key_of(session))
            before = made.asked
            await asyncio.sleep(0.2)
            assert made.asked == before
            assert len(looks) == 2

    asyncio.run(story())


def test_what_is_forgotten_asks_nothing() -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            await made.open_at(1, session)
            watching = made.web[0].watching
            for _ in range(1000):
                watching.forget(watching.watch(key_of(session), lambda end: None))
            before = made.asked
            await asyncio.sleep(3 * LEASE_S)
            assert made.asked == before
            assert len(watching._due) <= 1000
            await asyncio.sleep(LEASE_S)
            assert watching._due == [], "nor does it take space for long"

    asyncio.run(story())


def test_a_notice_that_comes_while_the_answer_is_on_its_way_asks_again() -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            await made.open_at(1, session)
            told = asyncio.create_task(session_ended(made, 0, session))
            for store in made.stores:
                store.gate = asyncio.Event()  # answers taken now are shown later
            before = made.asked
            while made.asked == before:
                await asyncio.sleep(0.01)
            gates = [store.gate for store in made.stores]
            for store in made.stores:
                store.gate = None
            await made.web[1].close_key(key_of(session))
            made.web[0].watching.noticed(key_of(session))
            asked, begun = made.asked, time.monotonic()
            for gate in gates:
                assert gate is not None
                gate.set()
            assert await within(told) is SessionEnd.CLOSED
            assert made.asked - asked == len(made.stores), "one question more, and at once"
            assert time.monotonic() - begun < LEASE_S

    asyncio.run(story())


def test_the_idle_timeout_is_told_and_use_elsewhere_puts_it_off() -> None:
    async def story() -> None:
        async with farm(idle_timeout_ms=800, leeway_ms=0, rotate_after_ms=60_000) as made:
            session = await made.begin()
            begun = time.monotonic()
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(0.6)
            used = await made.open_at(1, session)
            used["n"] = 2
            await in_hand.saved(made.web[1], used)
            assert await within(told) is SessionEnd.EXPIRED
            assert time.monotonic() - begun >= 1.4

    asyncio.run(story())


def test_the_absolute_timeout_is_told() -> None:
    async def story() -> None:
        async with farm(absolute_timeout_ms=500, leeway_ms=0) as made:
            assert await within(asyncio.create_task(session_ended(made, 0, await made.begin()))) is SessionEnd.EXPIRED

    asyncio.run(story())


def test_while_nobody_answers_it_stays_open_for_a_named_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watching, "BLIND_S", 1.5)

    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(0)
            begun = time.monotonic()
            for store in made.stores:
                await store.aclose()
            await asyncio.sleep(0.8)
            assert not told.done()
            assert await within(told) is SessionEnd.UNKNOWN
            assert time.monotonic() - begun >= 1.5
            for store in made.stores:
                await store.open()

    asyncio.run(story())


def test_a_session_that_was_lost_everywhere_is_over() -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            told = asyncio.create_task(session_ended(made, 1, session))
            await asyncio.sleep(0)
            assert made.web[0]._repair is not None
            await made.web[0]._repair.stop()  # its cache would bring the session back
            made.stores[0]._table = CountingStore("empty", time.monotonic)._table
            await made.stores[1].aclose()
            await asyncio.sleep(3 * LEASE_S)
            assert not told.done(), "who does not answer may have it"
            await made.stores[1].open()
            made.stores[1]._table = made.stores[0]._table
            assert await within(told) is SessionEnd.LOST

    asyncio.run(story())


def test_a_wrong_clock_of_ones_own_ends_nothing() -> None:
    async def story() -> None:
        async with farm() as made:
            session = await made.begin()
            world = made.web[0].copies.world
            right = world.now_ms
            world.now_ms = lambda: right() + 48 * 3_600_000  # type: ignore[method-assign]
            told = asyncio.create_task(session_ended(made, 0, session))
            await asyncio.sleep(3 * LEASE_S)
            assert not told.done()
            told.cancel()

    asyncio.run(story())


def test_what_does_not_exist_does_not_end() -> None:
    async def story() -> None:
        async with farm() as made:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session_ended(made, 0, Session()), 0.1)
            with pytest.raises(CoatcheckError, match="request"):
                await Session().ended()

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(6))
def test_in_random_histories_who_is_closed_is_told_and_nobody_else(seed: int) -> None:
    """Sessions move between two web servers, are written, closed here and there, and notices are lost on the way."""
    chance = random.Random(seed)

    async def story() -> None:
        async with farm() as made:
            sessions = [await made.begin() for _ in range(8)]
            watched = [(n, server) for n in range(8) for server in (0, 1) for _ in range(chance.randint(1, 3))]
            told = [asyncio.create_task(session_ended(made, server, sessions[number])) for number, server in watched]
            closed: set[int] = set()
            for _ in range(60):
                number, server = chance.randrange(8), chance.randrange(2)
                action = chance.choice(["read", "read", "write", "write", "close", "lose notices", "wait"])
                if action == "lose notices" and chance.random() < 0.1:
                    made.lose_notices()
                elif action == "close" and len(closed) < 4:
                    closed.add(number)
                    await made.web[server].close_key(key_of(sessions[number]))
                elif action in ("read", "write") and number not in closed:
                    opened = await made.open_at(server, sessions[number])
                    opened["n"] = opened["n"] + (action == "write")
                    await in_hand.saved(made.web[server], opened)
                await asyncio.sleep(chance.random() * 0.03)
            await asyncio.wait([task for task, (number, _) in zip(told, watched, strict=True) if number in closed])
            await asyncio.sleep(2 * LEASE_S)
            for task, (number, _) in zip(told, watched, strict=True):
                assert task.done() == (number in closed)
                assert not task.done() or task.result() is SessionEnd.CLOSED
                task.cancel()

    asyncio.run(story())
