"""The links do what they are told: without that, the network test would prove nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ports import free_port

from .links import Link, Order, Way

SILENCE_S = 0.3
"""Nothing comes through a cut link in that time; what comes through a whole one is waited for."""
DEADLINE_S = 30.0


class Ends:
    """Both ends of one connection through a link."""

    def __init__(self) -> None:
        self.far: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.far.put((reader, writer))

    async def connect(self, port: int) -> None:
        self.near_in, self.near_out = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(DEADLINE_S):
            self.far_in, self.far_out = await self.far.get()

    async def says(self, way: Way, word: bytes) -> bool:
        """Whether what is said at one end is heard at the other, soon."""
        writer, reader = (self.near_out, self.far_in) if way == "up" else (self.far_out, self.near_in)
        writer.write(word)
        try:
            async with asyncio.timeout(SILENCE_S):
                return await reader.readexactly(len(word)) == word
        except TimeoutError:
            return False

    async def hears(self, way: Way, word: bytes) -> None:
        reader = self.far_in if way == "up" else self.near_in
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.readexactly(len(word)) == word

    async def is_ended(self, reader: asyncio.StreamReader) -> bool:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await reader.read(1) == b""
        except ConnectionResetError:
            return True


@contextlib.asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, int, Ends]]:
    ends, target, port = Ends(), free_port(), free_port()
    async with await asyncio.start_server(ends.accept, "127.0.0.1", target):
        link = Link(port, "127.0.0.1", target)
        await link.listen()
        try:
            yield link, port, ends
        finally:
            await link.aclose()
            for name in ("near_out", "far_out"):
                if hasattr(ends, name):
                    getattr(ends, name).transport.abort()


def run(story: Callable[[Link, int, Ends], Any]) -> None:
    async def whole() -> None:
        async with linked() as (link, port, ends):
            await story(link, port, ends)

    asyncio.run(whole())


def order(do: Any, **more: Any) -> Order:
    return Order("x", do, **more)


@pytest.mark.parametrize("ways", [("up", "down"), ("up",), ("down",)])
def test_what_is_held_arrives_late(ways: tuple[Way, ...]) -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        assert await ends.says("up", b"one") and await ends.says("down", b"two")
        link.obey(order("hold", ways=ways))
        for way in ("up", "down"):
            assert await ends.says(way, b"during") is (way not in ways)  # type: ignore[arg-type]
        link.obey(order("heal"))
        for way in ways:
            await ends.hears(way, b"during")
        assert await ends.says("up", b"three") and await ends.says("down", b"four")

    run(story)


def test_or_it_is_lost_with_its_connection() -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        link.obey(order("hold"))
        assert not await ends.says("up", b"lost")
        link.obey(order("heal", lose=True))
        assert await ends.is_ended(ends.near_in) and await ends.is_ended(ends.far_in)
        await ends.connect(port)
        assert await ends.says("up", b"new")

    run(story)


def test_a_connection_that_begins_in_a_cut_comes_through_after_it() -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        link.obey(order("hold"))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await ends.far.get()
        link.obey(order("heal"))
        async with asyncio.timeout(DEADLINE_S):
            reader, other = await ends.far.get()
            assert await reader.readexactly(5) == b"hello"
        other.transport.abort()
        writer.transport.abort()

    run(story)


def test_half_open() -> None:
    """The far end has gone; the near one speaks into nothing until the link is healed."""

    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        link.obey(order("half"))
        assert await ends.is_ended(ends.far_in)
        ends.near_out.write(b"is anybody there?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENCE_S):
                await ends.near_in.read(1)
        link.obey(order("heal"))
        assert await ends.is_ended(ends.near_in)

    run(story)


def test_reset_and_refused() -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        link.obey(order("reset"))
        assert await ends.is_ended(ends.near_in) and await ends.is_ended(ends.far_in)
        await ends.connect(port)
        link.obey(order("refuse"))
        assert await ends.is_ended(ends.near_in)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ends.is_ended(reader)
        writer.transport.abort()
        link.obey(order("heal"))
        await ends.connect(port)
        assert await ends.says("down", b"here again")

    run(story)


def test_a_delay_keeps_the_order() -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        link.obey(order("delay", seconds=2 * SILENCE_S))
        assert not await ends.says("up", b"slow")
        link.obey(order("heal"))
        ends.near_out.write(b"quick")
        await ends.hears("up", b"slowquick")

    run(story)


def test_an_end_of_one_way_is_passed_on() -> None:
    async def story(link: Link, port: int, ends: Ends) -> None:
        await ends.connect(port)
        ends.near_out.write_eof()
        assert await ends.is_ended(ends.far_in)
        assert await ends.says("down", b"still here")

    run(story)
