"""A client's first records wait for the session that they offer, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from coatcheck.takeover.io.hello_ahead import MAX_LOOKS, HelloAhead
from coatcheck.tls.client_hello import ClientHello
from coatcheck.tls.sharing import LookedFor
from coatcheck.tls.turnstile import PER_ROUND, Turnstile

from .peers import MemoryClient

FOUND = LookedFor((b"found",))


class Sessions:
    """A store that takes its time."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.asked: list[ClientHello] = []
        self.forgotten: list[LookedFor] = []

    async def fetch_ahead(self, hello: ClientHello) -> LookedFor:
        self.asked.append(hello)
        await self.answers.wait()
        return FOUND

    def forget(self, looked_for: LookedFor) -> None:
        self.forgotten.append(looked_for)


class Link:
    """What is seen of the link to the director."""

    def __init__(self) -> None:
        self.reads = True
        self.closing = self.aborted = False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.closing
        self.reads = True

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.aborted = self.closing = True


class Beginning:
    """A handshake's beginning."""

    def __init__(self, sessions: Sessions, turnstile: Turnstile | None = None) -> None:
        self.link = Link()
        self.got: list[bytes] = []
        turnstile = turnstile or Turnstile(asyncio.get_running_loop())
        self.ahead = HelloAhead(sessions, turnstile, cast(asyncio.Transport, self.link), self.go_on)

    def go_on(self, records: list[bytes]) -> None:
        self.got += records


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def in_pieces(record: bytes, number: int) -> list[bytes]:
    """The same message in so many records."""
    message, size = record[5:], -(-len(record[5:]) // number)
    cut = [message[at : at + size] for at in range(0, len(message), size)]
    return [record[:3] + len(piece).to_bytes(2, "big") + piece for piece in cut]


HELLO = MemoryClient().handshake()
LATER = b"\x17\x03\x03\0\x01x"


def test_what_comes_while_a_session_is_fetched_is_held_and_the_link_is_not_read() -> None:
    async def run() -> None:
        sessions = Sessions()
        one = Beginning(sessions)
        one.ahead.hold(HELLO)
        one.ahead.hold(LATER)
        await settled()
        assert (one.got, one.link.reads, one.ahead.is_over, len(sessions.asked)) == ([], False, False, 1)
        sessions.answers.set()
        await settled()
        assert (one.got, one.link.reads, one.ahead.is_over) == ([HELLO, LATER], True, True)
        assert sessions.forgotten == []
        one.ahead.end()
        assert sessions.forgotten == [FOUND]

    asyncio.run(run())


@pytest.mark.parametrize("pieces", [2, MAX_LOOKS - 1, MAX_LOOKS])
def test_a_hello_may_come_in_several_records(pieces: int) -> None:
    async def run() -> None:
        sessions = Sessions()
        one = Beginning(sessions)
        records = in_pieces(HELLO, pieces)
        for record in records[:-1]:
            one.ahead.hold(record)
        await settled()
        assert (sessions.asked, one.link.reads) == ([], True)
        one.ahead.hold(records[-1])
        sessions.answers.set()
        await settled()
        assert (len(sessions.asked), one.got) == (1, records)

    asyncio.run(run())


@pytest.mark.parametrize(
    "records",
    [[LATER], [b"\x15\x03\x03\0\x02\x02\x28"], in_pieces(HELLO, 100)[:MAX_LOOKS]],
    ids=["data", "alert", "bits"],
)
def test_for_what_is_no_hello_nobody_is_asked_and_nothing_is_waited_for(records: list[bytes]) -> None:
    async def run() -> None:
        sessions = Sessions()
        one = Beginning(sessions)
        for record in records:
            one.ahead.hold(record)
        await settled()
        assert (one.got, sessions.asked, one.ahead.is_over) == (records, [], True)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["the handshake ends", "the link is lost"])
def test_who_goes_meanwhile_is_not_waited_for(how: str) -> None:
    async def run() -> None:
        sessions = Sessions()
        one = Beginning(sessions)
        one.ahead.hold(HELLO)
        await settled()
        one.link.closing = how == "the link is lost"
        if how == "the handshake ends":
            one.ahead.end()
        sessions.answers.set()
        await settled()
        assert (one.got, one.link.aborted) == ([], False)
        one.ahead.end()
        assert sessions.forgotten[-1] == (FOUND if how == "the link is lost" else LookedFor())

    asyncio.run(run())


def test_of_handshakes_that_could_begin_at_once_a_few_begin_in_each_round() -> None:
    """Each step of a handshake is OpenSSL's work, and nobody else's turn comes meanwhile."""

    async def run() -> None:
        loop, rounds = asyncio.get_running_loop(), [0]

        def tick() -> None:
            rounds.append(0)
            loop.call_soon(tick) if len(rounds) < 200 else None

        def counted(one: Beginning) -> Callable[[list[bytes]], None]:
            def go_on(records: list[bytes]) -> None:
                rounds[-1] += 1
                one.got += records

            return go_on

        sessions, turnstile = Sessions(), Turnstile(loop)
        many = [Beginning(sessions, turnstile) for _ in range(20)]
        for one in many:
            one.ahead._go_on = counted(one)
            one.ahead.hold(HELLO)
        await settled()
        loop.call_soon(tick)
        sessions.answers.set()
        while not all(one.ahead.is_over for one in many):
            await asyncio.sleep(0)
        assert [one.got for one in many] == [[HELLO]] * 20
        assert max(rounds) <= PER_ROUND

    asyncio.run(run())
