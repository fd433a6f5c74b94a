"""The link against servers that misbehave: a scripted server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from coatcheck import resp
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.session_server.requests import RequestLimits, RequestParser
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.events import StoreEvent, StoreEventKind
from coatcheck.stores.link import Link
from coatcheck.stores.port import Unreachable
from coatcheck.stores.session_server_store import SessionServerStore

LIMITS = RequestLimits(args=64, arg_bytes=2**20, request_bytes=2**21, line_bytes=1024)
KEY = bytes(range(16))
ENTRY = Entry(Version(1, b"AAA-0001", 0), (), False, 60_000, b"payload")

Answer = Callable[[list[bytes]], bytes]


def healthy(request: list[bytes]) -> bytes:
    if request[0] == b"HELLO":
        return b"%1\r\n$5\r\nproto\r\n:3\r\n"
    if request[0] == b"SUBSCRIBE":
        return resp.push(True, resp.bulk(b"subscribe"), resp.bulk(request[1]), b":1\r\n")
    return resp.PONG if request[0] == b"PING" else resp.EMPTY


class ScriptedServer:
    """Answers each request with what ``answer`` returns; ``None`` hangs up."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = 0
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        parser = RequestParser(LIMITS)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                parser.feed(data)
                while (request := parser.next()) is not None:
                    reply = self.answer(request)
                    if reply is None:
                        writer.transport.abort()
                        return
                    writer.write(reply)


@contextlib.asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[ScriptedServer]:
    scripted_server = ScriptedServer(answer)
    server = await asyncio.start_server(scripted_server.serve, "127.0.0.1", 0)
    scripted_server.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted_server
    finally:
        server.close()
        for writer in scripted_server.writers:
            writer.transport.abort()


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await story()

    asyncio.run(bounded())


async def ask(method: Callable[..., None], *arguments: object) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, answer.set_result)
    return await asyncio.wait_for(answer, 60)


def link_to(server: ScriptedServer, **options: Any) -> Link:
    return Link("s", StoreAddress(host="127.0.0.1", port=server.port), on_event=lambda event: None, **options)


@pytest.mark.parametrize(
    "bad",
    [
        b"?what\r\n",
        b"+PONG\r\n+PONG\r\n+PONG\r\n",
        b"$-5\r\n",
        b"*1\r\n" * 50,
        b"$3000000\r\n" + bytes(2_500_000),
        None,
        b"",
    ],
    ids=["not RESP", "too many replies", "bad length", "too deep", "too large", "hangs up", "silence"],
)
def test_a_server_that_talks_nonsense_is_dropped_and_every_call_answered(bad: bytes) -> None:
    async def story() -> None:
        sick = False

        def answer(request: list[bytes]) -> bytes:
            return bad if sick and request[0] == b"CC.GET" else healthy(request)

        async with scripted(answer) as server:
            link = link_to(server)
            await link.open()
            assert link.reachability.now
            sick = True
            changes: list[bool] = []
            link.reachability.watch(lambda name, reachable: changes.append(reachable))
            request = resp.command(b"CC.GET", KEY)
            answers = await asyncio.gather(*[ask(link.call, request) for _ in range(5)])
            assert len(answers) == 5
            if bad is None or b"PONG" not in bad:  # surplus replies are noticed when no call is left to take them
                assert isinstance(answers[-1], Unreachable)
            async with asyncio.timeout(60):
                while changes[:1] != [False]:
                    await asyncio.sleep(0.01)
                sick = False
                while not link.reachability.now:
                    await asyncio.sleep(0.01)
            assert await ask(link.call, request) == []
            await link.aclose()

    run(story)


@pytest.mark.parametrize(
    "reply", [b"+OK\r\n", b":2\r\n", b"_\r\n", b"*1\r\n:1\r\n", b"*2\r\n$1\r\nx\r\n:5\r\n", b"*2\r\n:5\r\n:5\r\n",
              b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", b"*3\r\n:1\r\n:1\r\n:1\r\n", b"-ERR no\r\n", b"#t\r\n", b",1.5\r\n",
              b"%1\r\n+a\r\n+b\r\n", b"*2\r\n$-1\r\n:-2\r\n"],
)  # fmt: skip
def test_replies_of_a_wrong_shape_are_unreachable_not_exceptions(reply: bytes) -> None:
    async def story() -> None:
        def answer(request: list[bytes]) -> bytes:
            return reply if request[0] in (b"CC.GET", b"CC.PUT", b"SCAN") else healthy(request)

        async with scripted(answer) as server:
            events: list[StoreEvent] = []
            store = SessionServerStore("s", "127.0.0.1", server.port, on_event=events.append)
            await store.open()
            events.clear()
            assert isinstance(await ask(store.get, KEY), Unreachable)
            if reply != b"#t\r\n":  # true counts as 1
                assert isinstance(await ask(store.put, KEY, None, ENTRY), Unreachable)
            assert isinstance(await ask(store.scan, 0, 10), Unreachable)
            assert events
            assert {event.kind for event in events} <= {
                StoreEventKind.CORRUPT_ENTRY,
                StoreEventKind.REFUSED_BY_SERVER,
            }
            await store.aclose()

    run(story)


def test_a_stored_entry_that_never_expires_is_corrupt() -> None:
    async def story() -> None:
        raw = ENTRY.encode()

        def answer(request: list[bytes]) -> bytes:
            if request[0] == b"CC.GET":
                return b"*2\r\n$%d\r\n%b\r\n:-1\r\n" % (len(raw), raw)
            return healthy(request)

        async with scripted(answer) as server:
            store = SessionServerStore("s", "127.0.0.1", server.port, on_event=lambda event: None)
            await store.open()
            assert isinstance(await ask(store.get, KEY), Unreachable)
            await store.aclose()

    run(story)


def test_a_callback_that_raises_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with scripted(healthy) as server:
            link = link_to(server)
            await link.open()

            def faulty(reply: object) -> None:
                raise RuntimeError("the caller's fault")

            request = resp.command(b"CC.GET", KEY)
            link.call(request, faulty)
            assert await ask(link.call, request) == []
            assert link.reachability.now
            await link.aclose()

    with caplog.at_level(logging.ERROR):
        run(story)
    assert "a reply callback failed" in caplog.text


def test_calls_made_inside_replies_and_after_losing_the_connection() -> None:
    async def story() -> None:
        async with scripted(healthy) as server:
            link = link_to(server)
            await link.open()
            request = resp.command(b"CC.GET", KEY)
            seen: list[object] = []

            def again(reply: object) -> None:
                seen.append(reply)
                if len(seen) < 300:
                    link.call(request, again)

            link.call(request, again)
            async with asyncio.timeout(60):
                while len(seen) < 100:
                    await asyncio.sleep(0.001)
                for writer in server.writers:
                    writer.transport.abort()
                while len(seen) < 300:
                    await asyncio.sleep(0.001)
            assert seen[0] == []
            assert any(isinstance(reply, Unreachable) for reply in seen)
            await link.aclose()

    run(story)


def test_closing_inside_a_reply() -> None:
    async def story() -> None:
        async with scripted(healthy) as server:
            link = link_to(server)
            await link.open()
            replies: list[object] = []
            closing: list[asyncio.Task[None]] = []

            def close(reply: object) -> None:
                closing.append(asyncio.ensure_future(link.aclose()))

            request = resp.command(b"CC.GET", KEY)
            link.call(request, close)
            for _ in range(10):
                link.call(request, replies.append)
            async with asyncio.timeout(60):
                while not closing:
                    await asyncio.sleep(0.001)
                await closing[0]
            assert len(replies) == 10

    run(story)


def test_a_refused_handshake_is_told_once_and_tried_again_with_growing_pauses() -> None:
    async def story() -> None:
        def answer(request: list[bytes]) -> bytes:
            return b"-LOADING the data set is loading\r\n" if request[0] == b"PING" else healthy(request)

        async with scripted(answer) as server:
            events: list[StoreEvent] = []
            link = Link("s", StoreAddress(host="127.0.0.1", port=server.port), on_event=events.append)
            began = time.monotonic()
            await link.open()
            assert not link.reachability.now
            async with asyncio.timeout(60):
                while server.connections < 5:
                    await asyncio.sleep(0.01)
            # At least half of 0.05, 0.1, 0.2 and 0.4 s between them, less the clock's grain.
            assert time.monotonic() - began > 0.35
            assert [event.kind for event in events] == [StoreEventKind.UNREACHABLE]
            assert "LOADING" in events[0].detail
            server.answer = healthy
            async with asyncio.timeout(60):
                while not link.reachability.now:
                    await asyncio.sleep(0.01)
            await link.aclose()

    run(story)


def test_a_server_that_hangs_up_after_each_handshake_is_not_hammered() -> None:
    async def story() -> None:
        async with scripted(healthy) as server:
            link = link_to(server)
            link.reachability.watch(
                lambda name, reachable: [writer.transport.abort() for writer in server.writers] and None
            )
            began = time.monotonic()
            await link.open()
            async with asyncio.timeout(60):
                while server.connections < 5:
                    await asyncio.sleep(0.01)
            assert time.monotonic() - began > 0.35
            await link.aclose()

    run(story)


def test_a_refused_subscription_drops_the_link_and_not_the_order_of_replies() -> None:
    async def story() -> None:
        def answer(request: list[bytes]) -> bytes:
            return b"-NOPERM no such channel for you\r\n" if request[0] == b"SUBSCRIBE" else healthy(request)

        async with scripted(answer) as server:
            link = link_to(server)
            await link.open()
            link.subscribe(b"AAA", lambda message: None)
            async with asyncio.timeout(60):
                while link.reachability.now:
                    await asyncio.sleep(0)
            assert "NOPERM" in (await ask(link.call, resp.command(b"PING"))).why
            await link.aclose()

    run(story)


def test_subscriptions_are_bounded() -> None:
    link = Link("s", StoreAddress(host="127.0.0.1"))
    for at in range(64):
        link.subscribe(b"%03d" % at, lambda message: None)
    with pytest.raises(ValueError, match="64"):
        link.subscribe(b"one", lambda message: None)


def test_what_is_issued_in_one_tick_leaves_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with scripted(healthy) as server:
            link = link_to(server)
            await link.open()
            assert link._live is not None
            transport = link._live._transport
            assert transport is not None
            written: list[bytes] = []
            write = transport.write

            def noted(data: bytes) -> None:
                written.append(bytes(data))
                write(data)

            monkeypatch.setattr(transport, "write", noted)
            request = resp.command(b"CC.GET", KEY)
            await asyncio.gather(*[ask(link.call, request) for _ in range(50)])
            # An idle ping may come along at any time.
            assert [data.count(request) for data in written if request in data] == [50]
            await link.aclose()

    run(story)
